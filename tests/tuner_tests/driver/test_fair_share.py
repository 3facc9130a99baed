"""How studies share a cluster."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.driver import fair_share
from tuner.driver.fair_share import SILENT_SECONDS, TURN_SECONDS, Claim, FairShare, divide
from tuner.spec.settings import TrialResources


def claim(
    token: str, *, wanted: int = 99, priority: float = 1, size: float = 1, **more: Any
) -> Claim:
    return Claim(token, token, "01", priority, "GPU", size, wanted, **more)


@pytest.mark.parametrize(
    ("total", "claims", "expected"),
    [
        (8, [claim("a")], {"a": 8}),
        (8, [claim("a"), claim("b")], {"a": 4, "b": 4}),
        (8, [claim("a", priority=3), claim("b")], {"a": 6, "b": 2}),
        # what one does not want is the other's
        (8, [claim("a"), claim("b", wanted=1)], {"a": 7, "b": 1}),
        (8, [claim("a", wanted=2), claim("b", wanted=1)], {"a": 2, "b": 1}),
        # an odd place goes to one of them
        (3, [claim("a"), claim("b")], {"a": 2, "b": 1}),
        # trials of two GPUs beside trials of half a GPU
        (4, [claim("a", size=2), claim("b", size=0.5)], {"a": 1, "b": 4}),
        (0, [claim("a"), claim("b")], {"a": 0, "b": 0}),
    ],
)
def test_places_of_studies(total: float, claims: list[Claim], expected: dict[str, int]) -> None:
    assert divide(total, claims) == expected


CLAIMS = st.lists(
    st.builds(
        claim,
        st.uuids().map(str),
        wanted=st.integers(0, 10),
        priority=st.floats(0.1, 10),
        size=st.sampled_from([0.25, 0.5, 1, 2]),
        served=st.floats(0, 1e5),
    ),
    max_size=6,
)


@given(total=st.integers(0, 16), claims=CLAIMS)
def test_nothing_that_is_wanted_is_idle_and_nothing_is_given_twice(
    total: int, claims: list[Claim]
) -> None:
    given_places = divide(total, claims)
    used = sum(given_places[one.token] * one.size for one in claims)
    assert used <= total
    for one in claims:
        assert given_places[one.token] <= one.wanted
        if given_places[one.token] < one.wanted:
            assert total - used < one.size
    # all drivers come to the same, in whatever order they read the claims
    assert divide(total, claims[::-1]) == given_places


def test_with_too_few_places_they_take_turns() -> None:
    served = {"a": 0.0, "b": 0.0}
    had = []
    for _ in range(int(4 * TURN_SECONDS / 50)):
        places = divide(1, [claim(name, served=seconds) for name, seconds in served.items()])
        (chosen,) = (name for name, count in places.items() if count)
        assert sum(places.values()) == 1
        served[chosen] += 50
        had.append(chosen)
    assert served["a"] == served["b"]
    # and not one epoch each
    changes = sum(one != other for one, other in itertools.pairwise(had))
    assert changes <= 4


class Cluster:
    """The store of a cluster, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: dict[str, str] = {}
        self.now = 0.0
        self.ended: set[str] = set()
        monkeypatch.setattr(fair_share, "ended_jobs", lambda: self.ended)
        monkeypatch.setattr(fair_share.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(fair_share, "write_cluster_note", self.notes.__setitem__)
        monkeypatch.setattr(fair_share, "remove_cluster_note", self.notes.pop)
        monkeypatch.setattr(
            fair_share,
            "cluster_notes",
            lambda prefix: [t for key, t in self.notes.items() if key.startswith(prefix)],
        )

    def study(self, name: str, live: list[int], priority: float = 1, gpu: float = 1) -> FairShare:
        share = FairShare(name, priority, f"job of {name}", f"token of {name}")
        share.claim(TrialResources(1, gpu, 4))
        share.follow(lambda: 8, lambda: live[0])
        return share


GPUS = {"CPU": 16.0, "GPU": 4.0}


def test_the_next_driver_of_a_study_frees_what_the_one_before_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch)
    freed: list[str] = []
    monkeypatch.setattr(fair_share, "free_places", freed.append)
    for name in ("liver", "spleen"):
        cluster.study(name, [1]).look(GPUS)
    resumed = FairShare("liver", 1, "another job", "another token")
    resumed.take_over("token of liver")
    assert freed == ["job of liver"]
    assert [json.loads(text)["study"] for text in cluster.notes.values()] == ["spleen"]
    # it was on another cluster, or has left this one
    resumed.take_over("token of liver")
    assert freed == ["job of liver"]
    # a study that went on in the same process has nothing else there
    FairShare("spleen", 1, "job of spleen", "a third token").take_over("token of spleen")
    assert (freed, cluster.notes) == (["job of liver"], {})


def test_a_study_makes_room_for_one_that_comes_and_has_all_again_when_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch)
    live = [4]
    first = cluster.study("liver", live)
    assert first.look(GPUS) == []
    assert (first.places, first.makes_room()) == (None, "")
    second = cluster.study("spleen", [0])
    second.look(GPUS)
    assert second.places == 2
    assert first.look(GPUS) == [
        "shared with spleen (priority 1); trials of this study (priority 1): 2 at once"
    ]
    assert first.look(GPUS) == []
    assert first.makes_room() == (
        "makes room for spleen (priority 1): trials of this study (priority 1): 2 at once"
    )
    assert first.makes_room()
    # two of four, which have not ended yet
    assert first.makes_room() == ""
    assert [first.lets_go() for _ in range(3)] == [True, True, False]
    live[0] = 2
    assert first.makes_room() == ""
    second.leave()
    assert first.look(GPUS) == ["this study has the cluster to itself again"]
    assert first.places is None


def test_a_driver_that_was_killed_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    killed = cluster.study("spleen", [2])
    killed.look(GPUS)
    cluster.ended.add("job of spleen")
    # neither from one that was there nor from one that comes, and its claim is not kept for ever
    first = cluster.study("liver", [4])
    first.look(GPUS)
    assert first.places is None
    assert len(cluster.notes) == 1


def test_a_study_that_left_claims_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    study = cluster.study("liver", [4])
    study.look(GPUS)
    study.leave()
    # the thread that looks may be late
    study.look(GPUS)
    assert not cluster.notes


def test_a_driver_that_is_silent_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    first, second = cluster.study("liver", [4]), cluster.study("spleen", [2])
    for _ in range(3):
        cluster.now += 1
        second.look(GPUS)
        first.look(GPUS)
    assert first.places == 2
    cluster.now += SILENT_SECONDS - 1
    first.look(GPUS)
    assert first.places == 2
    cluster.now += 2
    first.look(GPUS)
    assert first.places is None


def test_trials_on_other_devices_are_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    first, second = cluster.study("liver", [4]), cluster.study("spleen", [2], gpu=0)
    second.look(GPUS)
    first.look(GPUS)
    assert first.places is None
