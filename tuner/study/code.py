"""The code of the user's own that a study uses, kept in the study's folder for its workers.

A module that a search space names is copied, with the modules beside it that it imports, into
`code/`, which every trial puts on its Python path. So other nodes need no copy of their own, and a
study goes on with the code that it began with. What is installed (site-packages) is not copied:
it must be installed on each node. `code.json` lists the copied files; no other file in `code/` is
ever replaced or removed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from training.durable_write import write_durably
from training.registry import code_file
from tuner.errors import StudyError
from tuner.spec.plugins import CODE_FOLDER, import_plugins

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec

CODE_LIST = "code.json"
"""File that lists what the program copied into `code/`, with checksums."""


def keep_code(folder: Path, spec: StudySpec) -> None:
    """Copy the code that a study names into its folder; its lock is held.

    Raises:
        SpecError: if an import path leads nowhere.
        StudyError: if a file that is not the program's is in the way.
    """
    paths = import_plugins(spec)
    copies = dict(_copies(paths))
    if not copies:
        return
    remove_code(folder)
    for name in copies:
        if (folder / CODE_FOLDER / name).exists():
            raise StudyError(
                f"{folder / CODE_FOLDER / name} is in the way: the study would keep its code "
                "there; move it away, or choose another --name"
            )
    texts = {name: source.read_bytes() for name, source in copies.items()}
    listed = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    write_durably(folder / CODE_LIST, json.dumps(listed, indent=2))
    for name, text in texts.items():
        target = folder / CODE_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)


def remove_code(folder: Path) -> None:
    """Remove the code that the program copied into a study's folder, and folders left empty."""
    listed = folder / CODE_LIST
    with suppress(OSError, ValueError):
        names = [folder / CODE_FOLDER / name for name in json.loads(listed.read_text())]
        for path in names:
            path.unlink(missing_ok=True)
        for path in sorted({parent for name in names for parent in name.parents}, reverse=True):
            if path.is_relative_to(folder / CODE_FOLDER):
                with suppress(OSError):
                    path.rmdir()
        listed.unlink()


def code_folder(study_folder: Path) -> Path | None:
    """Where a study keeps its code; None if it has none. A confirmation uses its study's."""
    for folder in (study_folder, study_folder.parent):
        if (folder / CODE_LIST).is_file():
            return folder / CODE_FOLDER
    return None


def _copies(paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Files to copy, by their name in the study's code: of modules, and of what they import."""
    waiting = [_top_level(path.partition(":")[0]) for path in paths]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = code_file(name)
        if found is None or _is_installed(found):
            continue
        root = found.parent if found.name == f"{name}.py" else _package_folder(found).parent
        for file in [found] if found.name == f"{name}.py" else _package_files(found):
            yield str(file.relative_to(root)), file
            waiting += [
                other
                for other in _imported(file)
                if (root / f"{other}.py").is_file() or (root / other).is_dir()
            ]


def _top_level(module: str) -> str:
    return module.partition(".")[0]


def _package_folder(found: Path) -> Path:
    return found if found.is_dir() else found.parent


def _package_files(found: Path) -> list[Path]:
    folder = _package_folder(found)
    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _imported(file: Path) -> set[str]:
    """Outermost packages that a Python file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {_top_level(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(_top_level(node.module))
    return names


def _is_installed(file: Path) -> bool:
    """Whether a file is Python's own, an installed package's, or this package's."""
    ours = Path(__file__).resolve().parents[1]
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [Path(sysconfig.get_path(kind)) for kind in kinds]
    places += [Path(place) for place in (*site.getsitepackages(), site.getusersitepackages())]
    places += [ours, Path(sys.modules["training"].__path__[0])]
    resolved = file.resolve()
    return any(resolved.is_relative_to(place.resolve()) for place in places)
