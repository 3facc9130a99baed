"""What is sent to a cluster with a study: its search space and the code that it names."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from training.local_path import is_url, url_refusal
from tuner.errors import SpecError, StudyError
from tuner.spec.plugins import CODE_FOLDER
from tuner.spec.read_sections import apply_overrides
from tuner.spec.settings import EMBEDDED_DATA
from tuner.spec.yaml_source import YamlSource
from tuner.study.code import code_files
from tuner.study.create import usual_name
from tuner.study.name import check_new_name

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.spec.yaml_source import Override

SUPERVISOR = "tuner.driver.submit.supervise"
"""The program that starts a driver again when it is killed."""


@dataclass(frozen=True)
class Submission:
    """A study that is to run elsewhere.

    Attributes:
        name: Name of the study.
        space: File name of its search space.
        studies_dir: Folder of the studies, as the cluster sees it.
        files: What is sent, by name: the search space, and the code that it names in `code/`.
        arguments: Arguments of `tune`, which runs where `files` are.
        resubmit: How often the driver is started again when a signal killed it.
    """

    name: str
    space: str
    studies_dir: str
    files: Mapping[str, bytes]
    arguments: Sequence[str]
    resubmit: int = 0

    @property
    def program(self) -> list[str]:
        """Arguments of Python that run the study."""
        if self.resubmit == 0:
            return ["-m", "tuner", *self.arguments]
        return ["-m", SUPERVISOR, str(self.resubmit), *self.arguments]

    @property
    def shown(self) -> str:
        """The command that runs the study, for people."""
        return shlex.join(["tune", *self.arguments])

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder."""
        for name, content in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def pack_study(
    spec: StudySpec,
    name: str | None,
    *,
    studies_dir: str,
    overrides: Mapping[str, Override],
    export: str | None = None,
    resubmit: int = 0,
) -> Submission:
    """Check a study that is to run elsewhere, and gather what it needs.

    Args:
        spec: Its search space, with `overrides` in it. The code that it names is imported.
        name: Its name; that of the space's file and the time by default.
        studies_dir: Folder of the studies, as the cluster sees it.
        overrides: What replaces values of the file; given to `tune` there, as here.
        export: Folder there to export the best model to.
        resubmit: How often the driver is started again when a signal killed it.

    Raises:
        SpecError: if code that the space names is not found.
        StudyError: if the name or a path cannot be used there.
    """
    if not is_url(studies_dir):
        _check_path("--studies-dir", studies_dir)
    if export is not None:
        _check_path("--export", export)
    for field, path in _paths_given(spec, overrides).items():
        _check_path(field, path)
    name = usual_name(spec.source) if name is None else name
    check_new_name(name)
    space = spec.source.name or "space.yaml"
    code = {f"{CODE_FOLDER}/{file}": path.read_bytes() for file, path in code_files(spec).items()}
    settings = [f"--set={key}={_text(override)}" for key, override in overrides.items()]
    exported = [] if export is None else ["--export", export]
    return Submission(
        name,
        space,
        studies_dir,
        {space: spec.source_text.encode(), **code},
        # a name that begins with a dash is no option
        ["run", f"./{space}", "--name", name, "--studies-dir", studies_dir, *settings, *exported],
        resubmit,
    )


def refuse_data_folder(space: Path) -> None:
    """Refuse a folder of data in the place of a search space.

    Raises:
        SpecError: if it is one.
    """
    if space.is_dir() or str(space) == EMBEDDED_DATA:
        raise SpecError(
            f"{space} is data, and a study is sent with a search space, since its data are on the "
            "cluster: write one with `tune init` where the data are, or here with the path that "
            "they have on the cluster as its data_dir"
        )


def _paths_given(spec: StudySpec, overrides: Mapping[str, Override]) -> dict[str, str]:
    """Paths of a space as they are written: the spec has them absolute, as here."""
    source = YamlSource.parse(spec.source_text, str(spec.source))
    apply_overrides(source, overrides)
    config = source.data.get("config") or {}
    given = {"data_dir": str(config.get("data_dir", spec.config["data_dir"]))}
    given |= {name: str(config[name]) for name in ("splits_file", "groups") if config.get(name)}
    if not given.get("groups", ".csv").lower().endswith(".csv"):
        # a pattern of case names
        del given["groups"]
    if given["data_dir"] == EMBEDDED_DATA or is_url(given["data_dir"]):
        del given["data_dir"]
    return given


def _check_path(option: str, path: str) -> None:
    if is_url(path):
        raise StudyError(f"{option} {url_refusal(path)}")
    if not PurePosixPath(path).is_absolute():
        there = f"/shared/{PurePosixPath(path).name}"
        shown = f"{option} {there}" if option.startswith("-") else f"--set {option}={there}"
        raise StudyError(
            f"{option} {path} is a relative path, and the study runs on other machines: give the "
            f"path that it has there, e.g. {shown}"
        )


def _text(override: Override) -> str:
    """The value of an override as YAML text in one line."""
    if isinstance(override.value, str) and override.is_text:
        return override.value
    # JSON is YAML
    return json.dumps(override.value)
