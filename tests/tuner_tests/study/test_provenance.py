from __future__ import annotations

from typing import Any

from tuner.study.provenance import RESUMED, resumed


def told(created: str, **more: Any) -> dict[str, Any]:
    return {
        "created": created,
        "command": ["tune", created],
        "versions": {"torch": created},
        "platform": "here",
        "git": None,
        "data": {"source": f"/data/{created}"},
        **more,
    }


def test_a_study_that_goes_on_keeps_how_it_began() -> None:
    first = told("monday")
    second = resumed(first, told("tuesday", preparation={"labels": []}))
    third = resumed(second, told("friday"))
    for name in ("created", "command", "versions"):
        assert third[name] == first[name]
    assert [run["created"] for run in third[RESUMED]] == ["tuesday", "friday"]
    assert third[RESUMED][0]["versions"] == {"torch": "tuesday"}
    # the data may have been moved, and an older version did not know how they were prepared
    assert third["data"] == {"source": "/data/friday"}
    assert third["preparation"] == {"labels": []}
