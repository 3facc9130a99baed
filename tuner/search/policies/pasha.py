"""Progressive ASHA: the budget grows only while it changes the ranking (Bohdal et al., 2023)."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np

from tuner.search.policies.asha import PromotionAsha


class Pasha(PromotionAsha):
    """ASHA's promotion variant that adds a rung when the two top rungs rank trials differently.

    Trials are first promoted from the lowest rung alone. Whenever the trials of the highest
    rung in use are ranked otherwise there than one rung below, one more rung is used. Rankings
    are compared softly: trials whose scores are nearer than epsilon count as equal, where
    epsilon is the 90th percentile of the differences between trials whose learning curves
    cross forth and back, which only noise does (section 4 of the paper).
    """

    NAME = "PASHA"

    def _rank(self, number: int, epoch: int, *, over: bool = False) -> str:
        """The place of a trial; above the rungs in use, why none goes on."""
        if self._rungs.index(epoch) >= self._top():
            return (
                f"none goes on from here, for longer training does not change the ranking; "
                f"{self._judged_score(number, epoch).removesuffix(',')}"
            )
        return super()._rank(number, epoch, over=over)

    def _top(self) -> int:
        """How many rungs trials may be promoted from."""
        top = 1
        while top < len(self._rungs) and (
            # once used, a rung stays in use
            self._record.scores_at(self._rungs[top] + 1)
            or self._disagree(self._rungs[top - 1], self._rungs[top])
        ):
            top += 1
        return top

    def _disagree(self, lower: int, upper: int) -> bool:
        """Whether trials are ranked differently at two epochs."""
        above = {
            number: -negated
            for bracket in range(len(self._shares))
            for negated, number in self._rung(upper, bracket).ranked
            if math.isfinite(self._score(number, lower))
        }
        if len(above) < 2:
            return False
        below = {number: self._score(number, lower) for number in above}
        epsilon = self._epsilon(list(above), upper)
        ranked_above = sorted(above, key=lambda number: (-above[number], number))
        ranked_below = sorted(below, key=lambda number: (-below[number], number))
        return any(
            abs(above[one] - above[other]) > epsilon
            for one, other in zip(ranked_above, ranked_below, strict=True)
        )

    def _epsilon(self, numbers: list[int], epoch: int) -> float:
        """The difference of scores that noise may explain."""
        differences = []
        for one, other in combinations(numbers, 2):
            gaps = [self._score(one, e) - self._score(other, e) for e in range(1, epoch + 1)]
            signs = [sign for sign in np.sign(gaps) if sign and math.isfinite(sign)]
            if sum(before != after for before, after in pairwise(signs)) >= 2:
                differences.append(abs(gaps[-1]))
        return float(np.percentile(differences, 90)) if differences else 0.0
