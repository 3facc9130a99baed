"""The batch script of a study: as text, and run by bash with stand-ins for SLURM and Ray."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tuner.driver.submit.package import Submission
from tuner.driver.submit.slurm import SlurmOptions, batch_script, minutes, submit_script
from tuner.errors import ResourceError, StudyError

PYTHON = """\
#!/bin/bash
case "$*" in
    *"start --block"*"--head"*) echo "head $*" >> "$LOG"; exec sleep 1000 ;;
    *"start --block"*) echo "worker $*" >> "$LOG"; exec sleep 1000 ;;
    *health-check*) exit 0 ;;
esac
echo "driver $* in $(ls | tr '\\n' ' ')$(cat code/net.py) $RAY_ADDRESS ${#RAY_AUTH_TOKEN}" >> "$LOG"
DRIVER
"""

STAND_INS = {
    # the step's program, with what SLURM would set
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "getent": "echo '10.0.0.7 STREAM n1'",
}


def submission(**values: object) -> Submission:
    return Submission(
        "liver",
        "liver.yaml",
        "/shared/studies",
        {"liver.yaml": b"space: {}", "code/net.py": b"NET"},
        ["run", "./liver.yaml"],
        **values,
    )


def run_script(
    tmp_path: Path, driver: str, *, nodes: int = 1, signal: str | None = None
) -> tuple[int, list[str]]:
    """Run the script; its exit code, and what its programs noted."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {**STAND_INS, "python": PYTHON.replace("DRIVER", driver)}.items():
        text = body if body.startswith("#!") else f"#!/bin/bash\n{body}\n"
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    script = batch_script(submission(), SlurmOptions(nodes=nodes))
    line = next(line for line in script.splitlines() if line.startswith("python="))
    (tmp_path / "job.sh").write_text(script.replace(line, f"python={tools / 'python'}"))
    log = tmp_path / "log"
    os.mkfifo(tmp_path / "ready")
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(log),
        "READY": str(tmp_path / "ready"),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURMD_NODENAME": "n1",
        "SLURM_CPUS_ON_NODE": "4",
    }
    with subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment) as process:
        if signal is not None:
            (tmp_path / "ready").read_text()
            subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
        code = process.wait()
    return code, log.read_text().splitlines()


def test_one_node(tmp_path: Path) -> None:
    code, (head, driver) = run_script(tmp_path, "exit 3")
    assert code == 3
    assert head.startswith("head -m ray.scripts.scripts start --block")
    assert "--num-cpus=4 --num-gpus=0 --head --node-ip-address=127.0.0.1 --port=20680 " in head
    assert "--dashboard-host=127.0.0.1" in head
    assert driver == ("driver -m tuner run ./liver.yaml in code liver.yaml NET 127.0.0.1:20680 64")


def test_workers_join_the_head(tmp_path: Path) -> None:
    code, lines = run_script(tmp_path, "while ! grep -q ^worker $LOG; do :; done", nodes=3)
    assert code == 0
    assert any(line.startswith("worker") and "--address=10.0.0.7:20680" in line for line in lines)


WAITS = "trap 'exit 130' TERM; echo > $READY; while :; do read -rt 1 <> <(:); done"


@pytest.mark.parametrize(
    ("signal", "driver", "code", "again"),
    [
        ("USR1", WAITS, 130, True),
        # cancelled: not queued again
        ("TERM", WAITS, 130, False),
        # the study was done when the driver was told
        ("USR1", WAITS.replace("130", "0"), 0, False),
    ],
)
def test_a_job_is_queued_again_at_its_time_limit_alone(
    tmp_path: Path, signal: str, driver: str, code: int, again: bool
) -> None:
    ended, lines = run_script(tmp_path, driver, signal=signal)
    assert ended == code
    assert ("scontrol requeue 17" in lines) is again


def test_options_are_those_of_sbatch() -> None:
    options = SlurmOptions(2, "gpu", "a100:4", 32, "64G", "1-00:00:00", ("--account=lab",))
    script = batch_script(submission(resubmit=2), options)
    head = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert head == [
        f"#SBATCH --{option}"
        for option in (
            "job-name=liver",
            "output=/shared/studies/slurm/liver-%j.log",
            "open-mode=append",
            "requeue",
            "signal=B:USR1@120",
            "nodes=2",
            "ntasks-per-node=1",
            "partition=gpu",
            "gpus-per-node=a100:4",
            "cpus-per-task=32",
            "mem=64G",
            "time=1-00:00:00",
            "account=lab",
        )
    ]
    assert "-m tuner.driver.submit.supervise 2 run ./liver.yaml &" in script
    assert "@@" not in script


# from the manual of sbatch
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("30", 30),
        ("30:30", 30.5),
        ("2:00:00", 120),
        ("1-1", 1500),
        ("1-1:30", 1530),
        ("1-0:0:30", 1440.5),
    ],
)
def test_time_limits(limit: str, expected: float) -> None:
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "5"}, "--time 5 is below 10 minutes"),
        ({"time": "8h"}, "--time 8h is not a time limit"),
        ({"further": ("account=lab",)}, "is not an option"),
        ({"further": ("--a=b\nrm -rf /",)}, "is not an option"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        batch_script(submission(), SlurmOptions(**options))


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="there is no `sbatch` here"):
        submit_script(submission(), SlurmOptions(), dry_run=False)
