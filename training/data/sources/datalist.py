"""MONAI's datalist: a JSON file whose `training` lists images, label maps and perhaps folds.

```json
{"training": [{"image": "a.nii.gz", "label": "a_seg.nii.gz", "fold": 0}, ...]}
```

`validation` is the validation of one fold; `labels` and `modality` (or `channel_names`), as in
dataset.json, name classes and channels. Paths are relative to the file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data.raw.dataset_labels import read_labels
from training.data.raw.formats.file_format import image_stem
from training.data.sources.source import Request, Source, SourceCase
from training.data.sources.table import folds_of
from training.errors import DatasetError, reason_of

LOOKED_FOR = "a JSON file whose `training` lists mappings of image and label"


def fits(path: Path) -> bool:
    """Whether a file is a datalist."""
    return path.suffix.lower() == ".json" and path.is_file()


def read(path: Path, request: Request) -> Source:
    """The cases that a datalist lists.

    Raises:
        DatasetError: if it is no such file, or an entry of it is not a case.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {reason_of(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        raise DatasetError(
            f"{path}: a datalist is an object whose `training` lists mappings of image and label"
        )
    problems: list[str] = []
    training = _cases(path, content, "training", problems)
    validation = _cases(path, content, "validation", problems)
    if problems:
        raise DatasetError.of(path, problems)
    cases = [case for case, _ in (*training, *validation)]
    folds = folds_of(
        path,
        [case.case_id for case, _ in training],
        {case.case_id: fold for case, fold in training if fold is not None},
    )
    if validation:
        if folds:
            raise DatasetError(f"{path}: has `fold` in `training` and `validation`: keep one")
        folds = (
            {
                "train": sorted(case.case_id for case, _ in training),
                "val": sorted(case.case_id for case, _ in validation),
            },
        )
    notes = [
        f"{path}: {name} lists {len(content[name])} images, which are not taken: `tune predict` "
        "reads them where they are"
        for name in ("testing", "test")
        if isinstance(content.get(name), list) and content[name]
    ]
    return Source(
        str(content.get("name") or path.stem),
        request.channels or _channels(content),
        request.labels or _labels(content, path),
        tuple(cases),
        folds,
        tuple(notes),
    )


def _cases(
    path: Path, content: Mapping[str, Any], part: str, problems: list[str]
) -> list[tuple[SourceCase, int | None]]:
    """The cases of a part with their folds."""
    given = content.get(part) or []
    found = []
    for number, item in enumerate(given if isinstance(given, list) else [given]):
        entry = item if isinstance(item, dict) else {}
        images, label, fold = entry.get("image"), entry.get("label"), entry.get("fold")
        images = [images] if isinstance(images, str) else images
        names = [*images, label] if isinstance(images, list) and images else [None]
        if not all(isinstance(name, str) and name for name in names):
            problems.append(
                f"{path}: entry {number} of `{part}` must map image and label to files, but is "
                f"{item!r}"
            )
            continue
        if fold is not None and (isinstance(fold, bool) or not isinstance(fold, int)):
            problems.append(f"{path}: entry {number} of `{part}` has the fold {fold!r}: a number")
            continue
        *files, label_file = (path.parent / str(name).replace("\\", "/") for name in names)
        case_id = str(entry.get("case") or image_stem(label_file) or label_file.name)
        found.append((SourceCase(case_id, tuple(files), label_file), fold))
    return _with_own_names(found)


def _with_own_names(
    found: list[tuple[SourceCase, int | None]],
) -> list[tuple[SourceCase, int | None]]:
    """Cases named by their folder as well, where all label maps have one name."""
    if len({case.case_id for case, _ in found}) == len(found):
        return found
    return [
        (
            SourceCase(f"{case.images[0].parent.name}_{case.case_id}", case.images, case.label),
            fold,
        )
        for case, fold in found
    ]


def _channels(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    given = content.get("channel_names", content.get("modality"))
    if isinstance(given, dict) and set(given) == {str(i) for i in range(len(given))} and given:
        return tuple(str(given[str(index)]) for index in range(len(given)))
    return (given,) if isinstance(given, str) and given else None


def _labels(content: Mapping[str, Any], path: Path) -> dict[str, int] | None:
    if not isinstance(content.get("labels"), dict):
        return None
    labels = read_labels(content, path)
    ignored = {"ignore": labels.ignore[0]} if labels.ignore else {}
    if len(labels.ignore) > 1:
        raise DatasetError(
            f"{path}: several ignored values are not converted: give them one in the label maps"
        )
    return {**dict(zip(labels.names, labels.values, strict=True)), **ignored}
