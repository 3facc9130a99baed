"""Asks a Ray cluster whether a driver of this host may join it; a program of its own.

Ray's own calls write C++ log lines and wait for a minute or more where something is wrong, so
`tuner.run.cluster_check` starts this, and ends it when it takes too long. It writes two lines: that
it is ready to ask, and a JSON text of what it found: `{}`, or the `problem` and its `detail`.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout

from ray._private import services
from ray._private.authentication import authentication_token_setup as tokens
from ray._private.utils import check_version_info
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import AuthenticationError

NODE_SECONDS = 4.0
"""How long a raylet of this host that has just started may take to register."""


def probe(address: str, given: str) -> dict[str, str]:
    """What is in the way of joining a cluster; nothing if it can be joined.

    Args:
        address: HOST:PORT of its GCS.
        given: The address as the user gave it.
    """
    try:
        if given == "auto":
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        tokens.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        gcs = GcsClient(address=address)
        metadata = gcs.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=NODE_SECONDS)
    except AuthenticationError as error:
        return {"problem": "token", "detail": str(error).partition(". ")[0]}
    try:
        if metadata is not None:
            check_version_info(json.loads(metadata), "this process", raise_on_mismatch=True)
    except RuntimeError as error:
        return {"problem": "version", "detail": " ".join(str(error).split())}
    if not _has_node_here(gcs):
        return {"problem": "no node", "detail": ""}
    return {}


def _has_node_here(gcs: GcsClient) -> bool:
    """Whether a raylet of this host belongs to the cluster."""
    deadline = time.monotonic() + NODE_SECONDS
    while True:
        here = services.find_node_ids()
        nodes = gcs.get_all_node_info(timeout=NODE_SECONDS).values()
        if any(node.node_id.hex() in here and node.state == GcsNodeInfo.ALIVE for node in nodes):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def main() -> None:
    """Probe the cluster that the arguments name."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        try:
            found = probe(*sys.argv[1:])
        except Exception as error:
            found = {"problem": "failed", "detail": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
