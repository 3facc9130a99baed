"""Asks a Ray cluster whether a driver of this host may join it; a program of its own.

Ray's own calls write C++ log lines and wait for a minute or more where something is wrong, so
`tuner.driver.cluster_check` starts this, and ends it when it takes too long. It writes two lines:
that it is ready to ask, and a JSON text of what it found: `{}`, or the `problem` and its `detail`.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout

from ray.exceptions import AuthenticationError

from tuner.driver.ray_internals import check_versions, gcs_of, has_node_here

NODE_SECONDS = 4.0
"""How long a raylet of this host that has just started may take to register."""


def probe(address: str, given: str) -> dict[str, str]:
    """Why a cluster cannot be joined; {} if it can.

    Args:
        address: HOST:PORT of its GCS.
        given: The address as the user gave it.
    """
    try:
        gcs, metadata = gcs_of(address, token_of_this_machine=given == "auto", timeout=NODE_SECONDS)
    except AuthenticationError as error:
        return {"problem": "token", "detail": str(error).partition(". ")[0]}
    try:
        if metadata is not None:
            check_versions(metadata)
    except RuntimeError as error:
        return {"problem": "version", "detail": " ".join(str(error).split())}
    if not has_node_here(gcs, NODE_SECONDS):
        return {"problem": "no node", "detail": ""}
    return {}


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
