"""Addresses and servers that are none: told at once, with the way out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from tuner.driver.submit.server import JobServer, _dashboard
from tuner.errors import ResourceError


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.lab.org/team", "https://ray.lab.org/team"),
        ("http://[::1]", "http://[::1]:8265"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert _dashboard(given) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "http://head:port"])
def test_addresses_that_are_none(given: str) -> None:
    with pytest.raises(ResourceError, match="is not the address of a dashboard"):
        _dashboard(given)


def test_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ResourceError, match="give --address http://HEAD:8265"):
        _dashboard(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert _dashboard(None) == "http://head:8265"


@pytest.fixture
def answer() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """A server that answers as it is told, and its address."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answers.get(self.path, (404, "not found"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, ""), "no Ray dashboard at"),
        ((200, "<html>"), "no Ray dashboard at"),
        ((200, "{}"), "no Ray dashboard at"),
        ((403, "Forbidden"), "refuses the token .*RAY_AUTH_TOKEN_PATH"),
        ((401, "Unauthorized"), "refuses the token .*RAY_AUTH_TOKEN"),
        ((200, '{"ray_version": "2.9.3"}'), "runs Ray 2.9.3, and studies need"),
    ],
)
def test_servers_that_are_of_no_use(
    answer: tuple[str, dict[str, tuple[int, str]]],
    reply: tuple[int, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, answers = answer
    answers["/api/version"] = reply
    # another address in the environment is not asked
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(ResourceError, match=message):
        JobServer(address)


def test_a_dashboard_that_cannot_list_actors_is_told_of(
    answer: tuple[str, dict[str, tuple[int, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, answers = answer
    # another address in the environment is not asked
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    answers["/api/version"] = 200, json.dumps({"ray_version": ray.__version__})
    server = JobServer(address)
    # Ray asks with a filter, so that this server has no answer
    with pytest.raises(ResourceError, match=f"the cluster at {address} refuses: .*404"):
        server.living_actors()


def test_nothing_listens() -> None:
    with pytest.raises(ResourceError, match="nothing listens there"):
        JobServer("http://127.0.0.1:1")
