"""What a fault did to a study, beside an undisturbed one."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table
from watched import Watched

from tuner.study.record import StudyRecord


@dataclass
class Outcome:
    """What one fault did.

    Attributes:
        fault: What was done.
        codes: Exit codes of the drivers, one after the other.
        cut_off: Epochs that had begun and were not saved.
        repeated: Epochs trained again although a checkpoint of them was there.
        failures: What trials have spent of `max_failures`.
        seconds: From the fault to the next epoch that begins.
        same_scores: Whether all scores are those of an undisturbed study.
        same_decisions: Whether all decisions are.
        seen: What the study said of it.
    """

    fault: str
    codes: list[int] = field(default_factory=list)
    cut_off: int = 0
    repeated: int = 0
    failures: int = 0
    seconds: float | None = None
    same_scores: bool = False
    same_decisions: bool = False
    seen: str = ""


def trace(record: StudyRecord) -> list[tuple[int, int, str, str]]:
    """Decisions that have to do with scores."""
    return [
        (decision.trial, decision.epoch, decision.action, decision.reason.partition(" (after")[0])
        for decision in record.decisions
        if decision.action not in {"interrupted", "resumed", "retried"}
    ]


def judge(outcome: Outcome, study: Watched, calm: StudyRecord) -> Outcome:
    """Compare a study that has ended with an undisturbed one.

    Raises:
        RuntimeError: if its last driver failed.
    """
    if study.codes[-1]:
        raise RuntimeError(f"the study ended with {study.codes}:\n{study.output}")
    found = study.record()
    outcome.codes = study.codes
    # trials that run at the same time end in any order
    outcome.same_decisions = sorted(trace(found)) == sorted(trace(calm))
    outcome.same_scores = _scores(found) == _scores(calm)
    outcome.failures = sum(entry.failures for entry in found.entries.values())
    last: dict[str, int] = {}
    begun: dict[str, int] = {}
    for trial, what, epoch, _ in study.lines():
        if what == "saved":
            last[trial] = max(epoch, last.get(trial, 0))
            continue
        outcome.cut_off += begun.get(trial) == epoch
        outcome.repeated += epoch <= last.get(trial, 0)
        begun[trial] = epoch
    return outcome


def _scores(record: StudyRecord) -> dict[int, dict[int, float]]:
    return {number: entry.scores for number, entry in record.entries.items()}


def table(outcomes: list[Outcome]) -> Table:
    """What the faults did, for people."""
    shown = Table()
    for heading in (
        *("fault", "exit codes", "epochs cut off", "saved epochs repeated", "failures spent"),
        *("went on after", "same scores", "same decisions", "seen"),
    ):
        shown.add_column(heading, justify="left" if heading in {"fault", "seen"} else "right")
    for outcome in outcomes:
        shown.add_row(
            outcome.fault,
            ", ".join(map(str, outcome.codes)),
            *map(str, (outcome.cut_off, outcome.repeated, outcome.failures)),
            "" if outcome.seconds is None else f"{outcome.seconds:.0f} s",
            *("yes" if same else "NO" for same in (outcome.same_scores, outcome.same_decisions)),
            outcome.seen,
        )
    return shown
