"""nnU-Net's fingerprint, plan and preprocessing of a dataset, run by an interpreter that has it.

    PYTHON scans/nnunet_prepare.py DATASET_ID PROCESSES

Prints the seconds of each step as JSON, as its last line.
"""

from __future__ import annotations

import json
import sys
import time

from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)

if __name__ == "__main__":
    dataset, processes = int(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter()
    extract_fingerprints([dataset], num_processes=processes)
    plan_experiments([dataset])
    planned = time.perf_counter()
    preprocess([dataset], configurations=["3d_fullres"], num_processes=[processes])
    print(json.dumps({"plan": planned - start, "store": time.perf_counter() - planned}))
