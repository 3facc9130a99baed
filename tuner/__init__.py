"""Hyperparameter search for 3D medical image segmentation on Ray Tune.

Example:
    >>> import tuner
    >>> study = tuner.run("liver.yaml", name="liver")  # doctest: +SKIP
    >>> study = tuner.open_study("liver")
    >>> study.best.score
    0.8
    >>> study.best.params
    {'learning_rate': 0.02}

A name is imported when it is first used: `import tuner` loads neither torch, Ray nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.lazy_names import lazy_names

if TYPE_CHECKING:
    from importlib.metadata import version

    from training.data.sources.convert import ConvertedData
    from training.data.statistics.check import DataCheck
    from training.data.statistics.findings import Finding
    from training.errors import BundleError, DatasetError, PluginError, SegtuneError
    from tuner.api.data import check_data, convert_data, report_data
    from tuner.api.init import init_space
    from tuner.api.studies import list_studies, open_study, resume, run
    from tuner.api.study import Study, StudyInterrupted
    from tuner.api.trial import Trial
    from tuner.errors import ExportError, ResourceError, SpecError, StudyError, TunerError
    from tuner.spec.load import load_spec
    from tuner.spec.study_spec import StudySpec
    from tuner.study.trial_entry import TrialState

    __version__ = version("segtune")

__all__ = [
    "BundleError",
    "ConvertedData",
    "DataCheck",
    "DatasetError",
    "ExportError",
    "Finding",
    "PluginError",
    "ResourceError",
    "SegtuneError",
    "SpecError",
    "Study",
    "StudyError",
    "StudyInterrupted",
    "StudySpec",
    "Trial",
    "TrialState",
    "TunerError",
    "__version__",
    "check_data",
    "convert_data",
    "init_space",
    "list_studies",
    "load_spec",
    "open_study",
    "report_data",
    "resume",
    "run",
]

_MODULES = {
    "BundleError": "training.errors",
    "ConvertedData": "training.data.sources.convert",
    "DataCheck": "training.data.statistics.check",
    "DatasetError": "training.errors",
    "ExportError": "tuner.errors",
    "Finding": "training.data.statistics.findings",
    "PluginError": "training.errors",
    "ResourceError": "tuner.errors",
    "SegtuneError": "training.errors",
    "SpecError": "tuner.errors",
    "Study": "tuner.api.study",
    "StudyError": "tuner.errors",
    "StudyInterrupted": "tuner.api.study",
    "StudySpec": "tuner.spec.study_spec",
    "Trial": "tuner.api.trial",
    "TrialState": "tuner.study.trial_entry",
    "TunerError": "tuner.errors",
    "check_data": "tuner.api.data",
    "convert_data": "tuner.api.data",
    "init_space": "tuner.api.init",
    "list_studies": "tuner.api.studies",
    "load_spec": "tuner.spec.load",
    "open_study": "tuner.api.studies",
    "report_data": "tuner.api.data",
    "resume": "tuner.api.studies",
    "run": "tuner.api.studies",
}
"""Where each public name is defined."""

_public = lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("segtune")
    return _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
