"""Preprocessing of a whole dataset into the cache: on all cores, once, and resumable.

A dataset is one folder of arrays in the cache. Each case is written in full or not at all, so
that a preparation that was cut off goes on with the cases that are there; a lock lets one
process of a machine (of all machines, where the cache is shared) work while others wait.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from training.config import ModelTrainingConfig
from training.data.cache_folder import cache_errors, cache_root
from training.data.prepared.cache import FORMAT_VERSION, MANIFEST, CaseEntry, PreprocessedDataset
from training.data.prepared.case_files import store_case
from training.data.prepared.config_check import check_config
from training.data.prepared.fingerprint import dataset_fingerprint
from training.data.prepared.labelled import labelled_cases, labelled_lines, split_suffix
from training.data.prepared.normalisation import fingerprint_settings, schemes_of
from training.data.prepared.plan import CaseScan, DatasetPlan, plan_dataset, scan_case
from training.data.prepared.split import (
    SPLITS,
    held_out_cases,
    missing_classes,
    split_cases,
    split_name,
)
from training.data.prepared.split_rules import rules_digest, split_of_file
from training.data.prepared.task import region_warnings
from training.data.raw.case_threads import case_threads
from training.data.raw.dataset_channels import MISSING_CHANNELS
from training.data.raw.header_survey import survey_headers
from training.data.raw.layouts import RawCase, RawDataset, read_layout
from training.data.raw.phantom import resolve_data_dir
from training.durable_write import write_durably
from training.errors import DatasetError, reason_of

PLAN = "plan.json"
SPLIT_FOLDER = "splits"

BYTES_PER_VOXEL = 64
"""Memory that preparing a case takes at most, measured on volumes that are a third foreground."""

Result = TypeVar("Result")
Stored = TypeVar("Stored", bound=BaseModel)

OnCase = Callable[[str, int, int], None]
"""A callback that takes the current step, the cases done and all cases."""


def prepare_dataset(
    data_dir: Path,
    config: ModelTrainingConfig,
    *,
    cache_dir: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_case: OnCase | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Path:
    """Preprocess a dataset into the cache, or find it there.

    Two processes that ask for the same data at once prepare it once: one works, the other
    waits. A cut-off preparation is taken up where it ended, a damaged case is written again.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout.
        config: Its spacing, window, normalisation and split settings are used.
        cache_dir: The cache, `cache_root()` by default.
        on_progress: Called with a line about each step.
        on_case: Called with the step and its progress, after each case.
        on_warning: Called with each warning about the data, a line each, also where they are found
            prepared; without it, `on_progress` is, behind `warning: `.

    Returns:
        The folder of the split that the config asks for. Another `fold` or `val_fraction` is
        another folder with the same arrays.

    Raises:
        DatasetError: for every problem of the data at once, by file; if the config contradicts
            them; or if the cache cannot be written.
    """
    tell = on_progress or (lambda line: None)
    warn = on_warning or (lambda line: tell(f"warning: {line}"))
    dataset = read_layout(Path(data_dir).absolute(), config.missing_channels)
    check_config(config, dataset)
    root = cache_dir or cache_root()
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        fingerprint = dataset_fingerprint(dataset, _settings(config, dataset), root)
        arrays = root / f"{dataset.folder.name}-{fingerprint}"
        with FileLock(root / f"{arrays.name}.lock"):
            split = arrays / SPLIT_FOLDER / _split_name(config, dataset)
            if not _is_prepared(split):
                preparation = _Preparation(dataset, config, arrays, tell, on_case)
                preparation.write_split(split, fingerprint)
    prepared = PreprocessedDataset.load(split)
    counts = {case: entry.voxel_counts for case, entry in prepared.cases.items()}
    plan = _read(DatasetPlan, arrays / PLAN)
    missing = missing_classes(
        prepared.splits,
        counts,
        prepared.labels,
        dataset.class_of(config.target_label),
        None if plan is None else plan.voxel_counts,
        dataset.label_values,
    )
    for line in labelled_lines(prepared.splits, dataset, dataset.class_of(config.target_label)):
        tell(line)
    of_regions = region_warnings(config, dataset)
    for line in [*dataset.warnings, *of_regions, *missing, *prepared.warnings]:
        warn(line)
    return split


def prepared_fingerprint(data_dir: Path, config: ModelTrainingConfig) -> str:
    """Fingerprint that a data folder has once it is prepared, without preparing it.

    Raises:
        DatasetError: if the folder has not the layout of data, a file cannot be read, or the cache
            cannot be written, which remembers the digests of files.
    """
    dataset = read_layout(Path(data_dir).absolute(), config.missing_channels)
    root = cache_root()
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        whole = dataset_fingerprint(dataset, _settings(config, dataset), root)
    return _of_split(whole, _split_name(config, dataset))


def _split_name(config: ModelTrainingConfig, dataset: RawDataset) -> str:
    return split_name(config) + split_suffix(dataset, config.target_label)


def _of_split(fingerprint: str, split: str) -> str:
    return hashlib.sha256(f"{fingerprint}/{split}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DataSource:
    """Where the data of a study are: preprocessed, and as they were given.

    Attributes:
        preprocessed: What `prepare_dataset` returned, where the study was started.
        raw: The folder that it was given, or `phantom`.
        fingerprint: Of the preprocessed data.
    """

    preprocessed: Path
    raw: Path
    fingerprint: str

    def unseen(self) -> str | None:
        """What this node lacks if it sees neither preprocessed data nor data; None if it does."""
        if (self.preprocessed / MANIFEST).is_file() or resolve_data_dir(self.raw).is_dir():
            return None
        return (
            f"sees neither the preprocessed data {self.preprocessed} nor the data folder "
            f"{self.raw}: put one of them on storage that every node mounts (SEGTUNE_CACHE "
            "chooses where the preprocessed data are)"
        )

    def on_this_node(self, config: ModelTrainingConfig) -> Path:
        """The preprocessed folder: the study's own where it is seen, or one of this node.

        On a node that does not see the cache of the study, the first process prepares the
        data into the node's own cache, and the others wait for it and share it.

        Raises:
            DatasetError: if this node sees neither cache nor data, or has other data.
        """
        if (self.preprocessed / MANIFEST).is_file():
            return self.preprocessed
        node = socket.gethostname()
        problem = self.unseen()
        if problem is not None:
            raise DatasetError(f"node {node} {problem}")
        raw = resolve_data_dir(self.raw)
        local = prepare_dataset(raw, config)
        fingerprint = PreprocessedDataset.load(local).fingerprint
        if fingerprint != self.fingerprint:
            raise DatasetError(
                f"the data in {raw} on node {node} are not those of the study (fingerprint "
                f"{fingerprint}, not {self.fingerprint}): give every node the same files"
            )
        return local


def _settings(config: ModelTrainingConfig, dataset: RawDataset) -> dict[str, Any]:
    """The settings that the arrays depend on; of the split the test cases alone."""
    fields = {"target_spacing", "intensity_window"}
    settings = {
        "format": FORMAT_VERSION,
        **config.model_dump(mode="json", include=fields),
        **fingerprint_settings(config, dataset),
        # what the model may be given is part of the preprocessing
        **({MISSING_CHANNELS: "allowed"} if dataset.missing_channels else {}),
    }
    if config.compress_cache:
        settings["compressed"] = True
    given = split_of_file([case.case_id for case in dataset.cases], config)
    if given is not None:
        settings["test_cases"] = given["test"]
    elif config.held_out_share:
        settings["test_cases"] = [config.held_out_share, config.split_seed, rules_digest(config)]
    if dataset.is_partly_labelled:
        settings["partly_labelled"] = True
    return {name: value for name, value in settings.items() if value != []}


def _is_prepared(split: Path) -> bool:
    if not (split / MANIFEST).is_file():
        return False
    try:
        return PreprocessedDataset.load(split).is_complete()
    except DatasetError:
        return False


class _Preparation:
    """The preparation of one dataset, in steps that each go on from what is there."""

    def __init__(
        self,
        dataset: RawDataset,
        config: ModelTrainingConfig,
        arrays: Path,
        tell: Callable[[str], None],
        on_case: OnCase | None,
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._arrays = arrays
        self._tell = tell
        self._on_case = on_case or (lambda step, done, total: None)

    def write_split(self, split: Path, fingerprint: str) -> None:
        """Write the manifest of a split, and before it all that it needs."""
        dataset = self._dataset
        self._arrays.mkdir(exist_ok=True)
        plan = _read(DatasetPlan, self._arrays / PLAN) or self._plan()
        target = dataset.class_of(self._config.target_label)
        splits = split_cases(plan.voxel_counts, self._config)
        splits = labelled_cases(splits, plan.voxel_counts, dataset, target)
        # warnings come later; here it only refuses labels that cannot be learnt, before the work
        missing_classes(
            splits, plan.voxel_counts, dataset.labels, target, values=dataset.label_values
        )
        entries = self._entries(plan)
        of_cases = [warning for entry in entries.values() for warning in entry.warnings]
        manifest = PreprocessedDataset(
            folder=split,
            arrays=Path("..", ".."),
            name=dataset.name,
            labels=list(dataset.labels),
            channels=list(dataset.channels),
            modality="+".join(sorted(set(dataset.modalities))),
            fingerprint=_of_split(fingerprint, split.name),
            preprocessing=plan.preprocessing,
            splits=splits,
            cases=entries,
            # a header is doubted when it is scanned and again when it is preprocessed
            warnings=list(dict.fromkeys([*plan.warnings, *of_cases])),
        )
        split.mkdir(parents=True, exist_ok=True)
        write_durably(split / MANIFEST, manifest.model_dump_json(indent=1))
        parts = ", ".join(f"{len(splits[name])} {name}" for name in SPLITS)
        size = " x ".join(f"{step:g}" for step in plan.preprocessing.spacing)
        self._tell(f"preprocessed at {size} mm: {parts}")

    def _plan(self) -> DatasetPlan:
        """Look at every case, and decide the preprocessing."""
        schemes = schemes_of(self._config, self._dataset)

        def scan(case: RawCase) -> CaseScan:
            found = scan_case(case, self._dataset, schemes)
            write_durably(self._scan_path(case), found.model_dump_json())
            return found

        scans = self._for_each_case(
            "reading",
            scan,
            lambda case: _read(CaseScan, self._scan_path(case)),
            survey_headers(self._dataset).problems,
        )
        counts = {case: scan.voxel_counts for case, scan in scans.items()}
        test_cases = held_out_cases(counts, self._config)
        plan = plan_dataset(self._dataset, scans, self._config, test_cases)
        write_durably(self._arrays / PLAN, plan.model_dump_json(indent=1))
        for case in self._dataset.cases:
            self._scan_path(case).unlink(missing_ok=True)
        return plan

    def _entries(self, plan: DatasetPlan) -> dict[str, CaseEntry]:
        """Preprocess the cases that are not there yet."""

        def store(case: RawCase) -> CaseEntry:
            entry = store_case(
                case,
                plan.preprocessing,
                self._arrays,
                compressed=self._config.compress_cache,
            )
            write_durably(self._entry_path(case), entry.model_dump_json())
            return entry

        def stored(case: RawCase) -> CaseEntry | None:
            entry = _read(CaseEntry, self._entry_path(case))
            whole = entry is not None and entry.is_complete(self._arrays, case.case_id)
            return entry if whole else None

        return self._for_each_case("preprocessing", store, stored)

    def _for_each_case(
        self,
        step: str,
        work: Callable[[RawCase], Result],
        find: Callable[[RawCase], Result | None],
        known_problems: Mapping[str, str] | None = None,
    ) -> dict[str, Result]:
        """Work on every case whose result is not found; raise all their problems together.

        Args:
            step: What is done, in words.
            work: What is done with a case.
            find: The result of a case that was worked on before.
            known_problems: Cases that are not worked on, and why.
        """
        cases = self._dataset.cases
        problems = dict(known_problems or {})
        results = {
            case.case_id: found
            for case in cases
            if case.case_id not in problems and (found := find(case)) is not None
        }
        left = [
            case for case in cases if case.case_id not in results and case.case_id not in problems
        ]
        if left:
            done = f" ({len(results)} of them are done)" if results else ""
            self._tell(f"{step} {len(cases)} cases of {self._dataset.folder}{done}")
        self._on_case(step, len(results) + len(problems), len(cases))
        # reading, inflating and resampling release the interpreter lock: threads are as fast
        # as processes here, and need no second copy of the libraries
        with ThreadPoolExecutor(max_workers=case_threads(cases, BYTES_PER_VOXEL)) as pool:
            futures = {pool.submit(work, case): case.case_id for case in left}
            try:
                for future in as_completed(futures):
                    try:
                        results[futures[future]] = future.result()
                    except DatasetError as error:
                        problems[futures[future]] = str(error)
                    except OSError:
                        # the cache: files of the data fail as DatasetError
                        raise
                    except Exception as error:
                        # whatever it is, the other cases go on, and the file is named
                        problems[futures[future]] = self._failure(step, futures[future], error)
                    self._on_case(step, len(results) + len(problems), len(cases))
            except BaseException:
                # an interrupt or a full disk: finish what has begun, begin no more
                pool.shutdown(cancel_futures=True)
                raise
        if problems:
            in_order = [problems[case.case_id] for case in cases if case.case_id in problems]
            raise DatasetError.of(self._dataset.folder, in_order)
        return {case.case_id: results[case.case_id] for case in cases}

    def _failure(self, step: str, case_id: str, error: Exception) -> str:
        files = next(case.images for case in self._dataset.cases if case.case_id == case_id)
        return f"{files[0]}: {step} it failed ({type(error).__name__}: {reason_of(error)})"

    def _scan_path(self, case: RawCase) -> Path:
        return self._arrays / f"{case.case_id}.scan.json"

    def _entry_path(self, case: RawCase) -> Path:
        return self._arrays / f"{case.case_id}.json"


def _read(kind: type[Stored], path: Path) -> Stored | None:
    """What was stored in a JSON file; None if it is missing or damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
