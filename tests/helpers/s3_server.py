"""An S3 server on loopback: moto's, which can be made slow, full or silent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    # else the library looks for the metadata service of a cloud
    "AWS_EC2_METADATA_DISABLED": "true",
}

FULL = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>"
    b"<Message>the quota of the bucket is spent</Message></Error>"
)


class S3Server:
    """A server with one bucket, `studies`.

    Attributes:
        delay: Seconds that every answer takes.
        full: Whether nothing can be written any more.
        silent: Whether every request is answered with an error of the server.
        writes: How many requests have written something.
    """

    address = "s3://studies/lab"

    def __init__(self) -> None:
        self.delay = 0.0
        self.full = self.silent = False
        self.writes = 0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        # what moto keeps is the process's
        for path, method in (("moto-api/reset", "POST"), ("studies", "PUT")):
            with urlopen(Request(f"{self.endpoint}/{path}", method=method)):
                pass

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds it."""
        return {**ACCESS, "AWS_ENDPOINT_URL": self.endpoint}

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        writing = environ["REQUEST_METHOD"] in {"PUT", "POST"}
        if self.delay:
            time.sleep(self.delay)
        if self.silent or (self.full and writing):
            # a refusal that is not tried again: the library would wait for seconds
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [FULL]
        self.writes += writing
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


@contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that this process and those that it starts reach as `s3://studies`."""
    server = S3Server()
    for name, value in server.environment.items():
        patch.setenv(name, value)
    try:
        yield server
    finally:
        server.stop()
