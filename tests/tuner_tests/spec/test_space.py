from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.spec.domains import (
    DOMAINS,
    Choice,
    Domain,
    LogRandInt,
    LogUniform,
    QUniform,
    RandInt,
    Uniform,
)
from tuner.spec.space import Space

EXAMPLES: list[Domain] = [
    Choice(("adamw", "sgd")),
    Choice((1, True, None, 2.5)),
    Choice(("uniform", [1, 2, 5])),
    Choice(("uniform", [1, 2, 5]), names=("plain", "tumour")),
    Uniform(0.8, 0.99),
    LogUniform(1e-5, 1e-2),
    RandInt(1, 4),
    LogRandInt(1, 64),
    QUniform(0.25, 0.75, 0.25),
    QUniform(8, 64, 8),
]


def test_every_domain_has_an_example() -> None:
    assert {type(domain) for domain in EXAMPLES} == set(DOMAINS.values())


@pytest.mark.parametrize("domain", EXAMPLES, ids=lambda domain: domain.describe())
@given(seed=st.integers(0, 2**32))
def test_samples_are_in_the_domain(domain: Domain, seed: int) -> None:
    value = domain.sample(random.Random(seed))
    assert domain.contains(value)
    assert all(domain.contains(example) for example in domain.examples())


@pytest.mark.parametrize(
    ("domain", "outside"),
    [
        (Choice((1, 2)), True),
        (Choice((True, False)), 1),
        (Choice(("a",)), "b"),
        (Uniform(0, 1), 1.01),
        (Uniform(0, 1), "0.5"),
        (LogUniform(1e-5, 1e-2), 1e-6),
        (RandInt(1, 4), 2.5),
        (RandInt(1, 4), 5),
        (QUniform(0, 1, 0.25), 0.3),
        (QUniform(0, 1, 0.25), 1.25),
    ],
)
def test_what_is_outside(domain: Domain, outside: Any) -> None:
    assert not domain.contains(outside)


def test_ends_are_drawn_and_the_logarithm_is_uniform() -> None:
    rng = random.Random(0)
    assert {RandInt(1, 3).sample(rng) for _ in range(100)} == {1, 2, 3}
    assert {QUniform(0, 1, 0.5).sample(rng) for _ in range(100)} == {0, 0.5, 1}
    drawn = [LogUniform(1e-4, 1e-2).sample(rng) for _ in range(4000)]
    assert sum(value < 1e-3 for value in drawn) / 4000 == pytest.approx(0.5, abs=0.03)


def test_labels_stand_for_values() -> None:
    lists = Choice(("uniform", [1, 2, 5]))
    assert lists.labels == ["uniform", "[1, 2, 5]"]
    assert lists.restored("[1, 2, 5]") == [1, 2, 5]
    named = Choice(("uniform", [1, 2, 5]), names=("plain", "tumour"))
    assert [named.restored(label) for label in named.labels] == ["uniform", [1, 2, 5]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Choice(()), "at least one value"),
        (lambda: Choice(("a", "a")), "'a' more than once"),
        (lambda: Uniform(3, 1), r"`low < high` must hold, but got \(low=3, high=1\)"),
        (lambda: Uniform(1, 1), "`low < high`"),
        (lambda: Uniform("a", 1), "low must be a finite number, but got 'a'"),  # type: ignore[arg-type]
        (lambda: Uniform(0, float("inf")), "high must be a finite number"),
        (lambda: Uniform(True, 2), "low must be a finite number, but got True"),
        (lambda: LogUniform(0, 1), "loguniform needs low > 0"),
        (lambda: RandInt(1.5, 4), "whole numbers"),  # type: ignore[arg-type]
        (lambda: QUniform(0, 1, 0), "step > 0"),
        (lambda: QUniform(0, 1, 0.3), "do not end at high=1: choose high=0.9"),
        (lambda: QUniform(0, 1, 2), "do not end at high=1"),
    ],
)
def test_wrong_domains_name_the_values(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_conditions_follow_their_parents() -> None:
    space = Space(
        {
            "momentum": Uniform(0.8, 0.99),
            "nesterov": Choice((True, False)),
            "optimizer": Choice(("adamw", "sgd")),
            "decay": Uniform(0, 1),
        },
        {
            "momentum": {"nesterov": [True]},
            "nesterov": {"optimizer": ["sgd"]},
            "decay": {"optimizer": ["adamw", "sgd"]},
        },
    )
    assert [name for name, _ in space.items()] == ["optimizer", "nesterov", "decay", "momentum"]
    rng = random.Random(1)
    seen = set()
    for _ in range(60):
        values = space.sample(rng)
        assert ("nesterov" in values) == (values["optimizer"] == "sgd")
        assert ("momentum" in values) == (values.get("nesterov") is True)
        assert "decay" in values
        seen.add(tuple(sorted(values)))
    assert len(seen) == 3
    assert ("momentum", "0.8 to 0.99", "nesterov is True") in space.describe()


def test_conditions_in_a_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="a, b go round in a circle"):
        Space(
            {"a": Choice((1, 2)), "b": Choice((1, 2)), "c": Choice((1, 2))},
            {"a": {"b": [1]}, "b": {"a": [1]}},
        )
