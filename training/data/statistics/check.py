"""Checks a whole dataset, and lists all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.data.raw.case_threads import case_threads
from training.data.raw.layouts import RawCase, RawDataset, survey_layout
from training.data.statistics.examine import Examination, examine_case
from training.data.statistics.findings import KINDS, Finding
from training.data.statistics.measures import CaseMeasures
from training.data.statistics.outliers import compare_cases
from training.errors import DatasetError, reason_of
from training.local_path import folder_problem

BYTES_PER_VOXEL = 24
"""Memory that examining a case takes at most: the voxels of the file, float32 of them, their label
map, and connected components; 10 to 16 were measured for a CT of int16."""

OnCase = Callable[[str, int, int], None]
"""A callback that takes the current step, the cases done and all cases."""


@dataclass(frozen=True)
class DataCheck:
    """What a check of a dataset found.

    Attributes:
        folder: The data folder.
        dataset: The cases whose files are all there; None if dataset.json cannot be used.
        findings: Every fault, errors first, by kind and case.
        cases: Measures of the cases whose headers can be used, by name.
        headers_only: Whether voxels were left unread.
    """

    folder: Path
    dataset: RawDataset | None
    findings: tuple[Finding, ...]
    cases: tuple[CaseMeasures, ...]
    headers_only: bool

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Faults for which a study refuses the data, or learns what is wrong."""
        return tuple(each for each in self.findings if each.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What a person should look at."""
        return tuple(each for each in self.findings if each.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        dataset = self.dataset
        return {
            "folder": str(self.folder),
            "name": None if dataset is None else dataset.name,
            "ok": self.ok,
            "headers_only": self.headers_only,
            "channels": [] if dataset is None else list(dataset.channels),
            "labels": [] if dataset is None else list(dataset.labels),
            "findings": [
                {
                    "severity": each.severity,
                    "kind": each.kind,
                    "case": each.case,
                    "message": each.message,
                    "way_out": KINDS[each.kind].way_out,
                }
                for each in self.findings
            ],
            "cases": [asdict(case) for case in self.cases],
        }


def check_dataset(
    folder: Path, *, headers_only: bool = False, on_case: OnCase | None = None
) -> DataCheck:
    """Read every file of a dataset, and list all that is wrong or doubtful.

    Args:
        folder: Folder in Decathlon or nnU-Net layout.
        headers_only: Whether voxels are left unread: in seconds, but label values, intensities
            and duplicates are not checked.
        on_case: Called with the step and its progress, after each case.

    Raises:
        DatasetError: if there is no folder.
    """
    folder = Path(folder)
    if folder_problem(folder) is not None:
        survey_layout(folder)
    try:
        dataset, problems = survey_layout(folder)
    except DatasetError as error:
        return DataCheck(folder, None, (Finding("description", str(error)),), (), headers_only)
    findings = [Finding("files", line) for line in problems]
    if not dataset.cases:
        findings.append(Finding("files", f"{folder}: no case has all of its files"))
    findings += [Finding("not used", line) for line in dataset.warnings]
    results = _examine_all(dataset, headers_only, on_case or (lambda step, done, total: None))
    for result in results:
        findings += result.findings
    cases = tuple(result.measures for result in results if result.measures is not None)
    findings += compare_cases(dataset, cases)
    order = list(KINDS)
    # sorted is stable: cases stay in the order of their names
    findings.sort(key=lambda finding: order.index(finding.kind))
    return DataCheck(folder, dataset, tuple(findings), cases, headers_only)


def _examine_all(dataset: RawDataset, headers_only: bool, on_case: OnCase) -> Sequence[Examination]:
    """Examine every case on all cores, within memory."""
    cases = dataset.cases
    if not cases:
        return []
    step = "checking"
    on_case(step, 0, len(cases))
    results: dict[str, Examination] = {}
    with ThreadPoolExecutor(max_workers=case_threads(cases, BYTES_PER_VOXEL)) as pool:
        futures = {
            pool.submit(examine_case, case, dataset, headers_only=headers_only): case
            for case in cases
        }
        try:
            for future in as_completed(futures):
                case = futures[future]
                try:
                    results[case.case_id] = future.result()
                except Exception as error:
                    # whatever it is, the other cases go on, and the file is named
                    results[case.case_id] = _failed(case, error)
                on_case(step, len(results), len(cases))
        except BaseException:
            # an interrupt: finish what has begun, begin no more
            pool.shutdown(cancel_futures=True)
            raise
    return [results[case.case_id] for case in cases]


def _failed(case: RawCase, error: Exception) -> Examination:
    result = Examination(case)
    what = "" if isinstance(error, MemoryError) else f"{type(error).__name__}: "
    result.found("image", f"{case.images[0]}: cannot be examined ({what}{reason_of(error)})")
    return result
