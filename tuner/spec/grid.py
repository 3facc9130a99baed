"""The points of a grid over a space, and the points that are tried first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuner.errors import SpecError
from tuner.spec.space import stored_values

if TYPE_CHECKING:
    from tuner.spec.space import Space
    from tuner.spec.study_spec import StudySpec


MAX_POINTS = 10_000

POINTS = 5
"""Points along a continuous field, and at most along a stepped one."""


DEFAULT = "default"
"""Name of the default config."""


def first_points(spec: StudySpec) -> list[tuple[str, dict[str, Any]]]:
    """Points to try before the searcher is asked, each once, by what they are."""
    given = [(DEFAULT, spec.default_point())] if spec.search.default_first else []
    given += [("start_from", point) for point in spec.start_points()]
    points: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for name, point in given:
        points.setdefault(point_key(spec.space, point), (name, point))
    return list(points.values())


def planned_trials(spec: StudySpec) -> int:
    """Trials of a study that no other budget ends: as many as asked for, or as a grid has."""
    if spec.search.searcher != "grid":
        return spec.search.num_trials
    try:
        return min(spec.search.num_trials, trials_of_grid(spec))
    except SpecError:
        # it is refused when the search begins
        return spec.search.num_trials


def trials_of_grid(spec: StudySpec) -> int:
    """Trials that it takes to try every point of the grid, and those given to try first."""
    points = [*grid_points(spec.space), *(point for _, point in first_points(spec))]
    return len({point_key(spec.space, point) for point in points})


def grid_points(space: Space) -> list[dict[str, Any]]:
    """All points of the grid of a space.

    Raises:
        SpecError: if there are more than `MAX_POINTS`.
    """
    points: list[dict[str, Any]] = [{}]
    for name, domain in space.items():
        values = domain.grid(POINTS)
        points = [
            extended
            for point in points
            for extended in (
                [{**point, name: value} for value in values]
                if space.active(name, point)
                else [point]
            )
        ]
        if len(points) > MAX_POINTS:
            raise SpecError(
                f"searcher=grid would have more than {MAX_POINTS} points in this space: leave "
                "some fields out of `space`, or choose another searcher"
            )
    return points


def point_key(space: Space, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """A point as something that equals that of the same point."""
    return tuple(sorted(stored_values(space, values).items()))
