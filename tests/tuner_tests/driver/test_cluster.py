"""How a study starts or joins its Ray cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import services, worker

from tuner.driver.cluster import ray_cluster


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_the_job_is_called_after_the_study_and_an_own_cluster_stays_on_loopback(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def init(**given: Any) -> SimpleNamespace:
        asked.update(given, ip=services.get_node_ip_address())
        return SimpleNamespace(dashboard_url="there")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    # that of a cluster which other tests have started
    monkeypatch.setattr(worker, "_global_node", None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    outside = services.get_node_ip_address()
    with ray_cluster(address, "liver") as dashboard:
        assert dashboard == "there"
    assert asked["job_config"].metadata == {"job_name": "liver", "study": "liver"}
    assert asked["ip"] == (outside if address else "127.0.0.1")
    assert services.get_node_ip_address() == outside
