"""A domain is one class and one entry: the rest of the search asks nothing but `Domain`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage
from spec_text import parse

from tuner.errors import SpecError
from tuner.search.encoding import SpaceEncoding
from tuner.search.policies.explore import perturbed
from tuner.search.searchers import SEARCHERS
from tuner.search.searchers.view import SearchView
from tuner.spec.domain import Distribution, Domain
from tuner.spec.domains import DOMAINS, Choice, LogRandInt, LogUniform, QUniform, RandInt, Uniform
from tuner.spec.grid import grid_points
from tuner.spec.space import Space, restored_values, stored_values
from tuner.study.distributions import distribution_of
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray


@dataclass(frozen=True)
class PowerOfTwo:
    """A power of two from 2^low to 2^high; kept as its exponent."""

    low: int
    high: int

    kind: ClassVar[str] = "power_of_two"
    may_be_condition: ClassVar[bool] = True

    @classmethod
    def read(cls, arguments: Any) -> Self:
        if not isinstance(arguments, list) or len(arguments) != 2:
            raise ValueError(f"power_of_two needs [low, high], but got {arguments!r}")
        return cls(*arguments)

    def to_yaml(self) -> dict[str, Any]:
        return {self.kind: [self.low, self.high]}

    def describe(self) -> str:
        return f"2^{self.low} to 2^{self.high}"

    def sample(self, rng: random.Random) -> int:
        return 2 ** rng.randint(self.low, self.high)

    def contains(self, value: Any) -> bool:
        return value in self.grid(self.count)

    def nearest(self, value: Any) -> int:
        return min(self.grid(self.count), key=lambda known: abs(known - (value or 0)))

    def examples(self) -> tuple[Any, ...]:
        return 2**self.low, 2**self.high

    def place_of(self, example: Any) -> tuple[str | int, ...]:
        return (self.kind,)

    def grid(self, points: int) -> list[Any]:
        return [2**exponent for exponent in range(self.low, self.high + 1)][:points]

    def explore(self, value: Any, rng: random.Random, factors: tuple[float, float]) -> int:
        return self.nearest(value * 2 if rng.choice(factors) > 1 else value // 2)

    def stored(self, value: Any) -> int:
        return int(value).bit_length() - 1

    def restored(self, stored: Any) -> int:
        return 2 ** int(stored)

    @property
    def distribution(self) -> Distribution:
        return Distribution(low=self.low, high=self.high, step=1, whole=True)

    @property
    def options(self) -> None:
        return

    @property
    def count(self) -> int:
        return self.high - self.low + 1

    @property
    def width(self) -> int:
        return 1

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        return np.array([(self.place(value) + 0.5) / self.count])

    def from_unit(self, coordinates: Float[ndarray, " w"]) -> int:
        return 2 ** (self.low + int(self.places(coordinates[None])[0]))

    def places(self, coordinates: Float[ndarray, "n w"]) -> Int[ndarray, " n"]:
        places = np.floor(coordinates[:, 0] * self.count)
        return np.clip(places, 0, self.count - 1).astype(int)

    def place(self, value: Any) -> int:
        return self.stored(value) - self.low

    def snapped(self, coordinates: Float[ndarray, "n w"]) -> Float[ndarray, "n w"]:
        return (self.places(coordinates)[:, None] + 0.5) / self.count


ALL: list[Domain] = [
    Choice((1, 2, 4)),
    Choice(("uniform", [1, 1, 3])),
    Choice(("uniform", [1, 1, 3]), ("plain", "tumour")),
    Uniform(0.5, 2),
    LogUniform(1e-5, 1e-1),
    RandInt(2, 9),
    LogRandInt(1, 64),
    LogRandInt(1, 3),
    QUniform(0.25, 0.75, 0.125),
    PowerOfTwo(0, 4),
]


@pytest.fixture
def power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "power_of_two", PowerOfTwo)


@pytest.mark.parametrize("domain", ALL, ids=[domain.describe() for domain in ALL])
def test_what_every_domain_keeps_to(domain: Domain, power_of_two: None) -> None:
    assert DOMAINS[domain.kind] is type(domain)
    assert type(domain).read(domain.to_yaml()[domain.kind]) == domain
    rng = random.Random(0)
    values = [domain.sample(rng) for _ in range(50)]
    for value in [*values, *domain.grid(5), *domain.examples()]:
        assert domain.contains(value)
        assert domain.nearest(value) == (pytest.approx(value) if domain.options is None else value)
        assert domain.restored(domain.stored(value)) == value
        again = domain.from_unit(domain.to_unit(value))
        assert again == (pytest.approx(value) if domain.options is None else value)
        assert domain.contains(domain.explore(value, rng, (0.8, 1.2)))
        assert domain.contains(domain.nearest(None))
    block = np.random.default_rng(0).uniform(-0.2, 1.2, (40, domain.width))
    snapped = domain.snapped(block)
    assert snapped.shape == block.shape
    assert ((snapped >= 0) & (snapped <= 1)).all()
    # a vector and what it is snapped to are one value
    for row, coordinates in zip(block, snapped, strict=True):
        value = domain.from_unit(row)
        np.testing.assert_allclose(domain.to_unit(value), coordinates)
    if domain.count is not None:
        assert set(domain.places(block)) <= set(range(domain.count))
        assert [domain.place(domain.from_unit(row)) for row in block] == list(domain.places(block))
        assert len({repr(value) for value in values}) <= domain.count


SPACE = """\
config: {max_epochs: 4, data_dir: phantom}
space:
  train_batch_size: {power_of_two: [0, 3]}
  learning_rate: {loguniform: [1e-4, 1e-1], when: {train_batch_size: [1, 8]}}
"""


def test_a_new_domain_goes_through_yaml_and_checks(power_of_two: None) -> None:
    spec = parse(SPACE)
    assert spec.space.domains["train_batch_size"] == PowerOfTwo(0, 3)
    assert parse(spec.to_yaml()).space == spec.space
    assert isinstance(PowerOfTwo(0, 3), Domain)
    default = spec.base_config().train_batch_size
    assert spec.default_point()["train_batch_size"] == default
    with pytest.raises(SpecError, match=r"s\.yaml:3:36: power_of_two needs \[low, high\]"):
        parse(SPACE.replace("[0, 3]", "3"))
    with pytest.raises(SpecError, match="train_batch_size is never 3 in this space"):
        parse(SPACE.replace("[1, 8]", "3"))
    with pytest.raises(SpecError, match="did you mean 'power_of_two'"):
        parse(SPACE.replace("power_of_two", "power_of_tow"))


def test_a_new_domain_goes_through_encoding_grid_and_exploring(power_of_two: None) -> None:
    space = parse(SPACE).space
    sizes = [point["train_batch_size"] for point in grid_points(space)]
    assert {size: sizes.count(size) for size in set(sizes)} == {1: 5, 2: 1, 4: 1, 8: 5}
    encoding = SpaceEncoding(space)
    rng = random.Random(0)
    for _ in range(20):
        point = space.sample(rng)
        decoded = encoding.decode(encoding.encode(point))
        assert decoded == {name: pytest.approx(value) for name, value in point.items()}
        assert restored_values(space, stored_values(space, point)) == point
        explored = perturbed(space, point, rng, 0.0)
        assert ("learning_rate" in explored) == (explored["train_batch_size"] in {1, 8})
    vectors = np.random.default_rng(0).uniform(size=(30, encoding.size))
    for vector, snapped in zip(vectors, encoding.snapped(vectors), strict=True):
        np.testing.assert_allclose(encoding.encode(encoding.decode(vector)), snapped)


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_new_domain_is_searched_and_recorded(searcher: str, power_of_two: None) -> None:
    spec = parse(SPACE)
    storage = InMemoryStorage()
    record = StudyRecord(Path("memory"), spec.space, "max", storage)
    propose = SEARCHERS.resolve(searcher)
    for number in range(4):
        view = SearchView(record, number, 0, spec.default_point(), (4,))
        proposal = propose(view)
        assert proposal is not None
        entry = record.propose(proposal.values, searcher)
        record.report(entry.number, 4, 0.1 * number, {"val_dice": 0.1 * number}, 1.0)
        record.finish(entry.number, TrialState.COMPLETED, "trained")
    again = StudyRecord(Path("memory"), spec.space, "max", storage)
    assert [entry.values for entry in again.entries.values()] == [
        entry.values for entry in record.entries.values()
    ]
    assert all(
        spec.space.domains["train_batch_size"].contains(entry.values["train_batch_size"])
        for entry in again.entries.values()
    )


def test_a_wrong_value_of_a_named_choice_is_found_at_its_name() -> None:
    text = "space:\n  loss:\n    choice:\n      first: dice_ce\n      second: dise\n"
    with pytest.raises(SpecError, match=r"^s\.yaml:5:15: loss='dise' is not known"):
        parse(text)


def test_spaces_are_compared_by_their_domains() -> None:
    assert Space({"seed": RandInt(1, 2)}) == Space({"seed": RandInt(1, 2)})
    assert Space({"seed": RandInt(1, 2)}) != Space({"seed": RandInt(1, 3)})


def test_whole_numbers_are_uniform_on_a_logarithmic_scale_as_optunas_are() -> None:
    domain = LogRandInt(1, 64)
    rng = random.Random(0)
    ours = np.array([domain.sample(rng) for _ in range(4000)])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    theirs = np.array([study.ask({"x": distribution_of(domain)}).params["x"] for _ in range(4000)])
    for bound in (1, 2, 4, 8, 16, 32):
        share = np.log((bound + 0.5) / 0.5) / np.log(64.5 / 0.5)
        assert (ours <= bound).mean() == pytest.approx(share, abs=0.03)
        assert (theirs <= bound).mean() == pytest.approx(share, abs=0.03)
    assert domain.grid(5) == [1, 2, 6, 19, 64]
    assert domain.nearest(None) == 8
    with pytest.raises(ValueError, match=r"lograndint needs low >= 1, but got \(low=0, high=8\)"):
        LogRandInt(0, 8)
    with pytest.raises(ValueError, match="lograndint needs whole numbers"):
        LogRandInt(1.5, 8)  # type: ignore[arg-type]
