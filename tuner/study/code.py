"""The code of the user's own that a study uses, kept in the study's folder for its workers.

A module that a search space names is copied, with the modules beside it that it imports, into
`code/`, which every trial puts on its Python path. So other nodes need no copy of their own, and a
study goes on with the code that it began with. A package is copied with all its files, a module
alone. What is installed (site-packages) is not copied: it must be installed on each node.
`code.json` lists the copied files; no other file in `code/` is ever replaced or removed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from training.durable_write import write_durably
from training.registry import code_file
from tuner.errors import StudyError
from tuner.spec.plugins import CODE_FOLDER, import_plugins
from tuner.study.files import RESOLVED_SPEC

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec

CODE_LIST = "code.json"
"""File that lists what the program copied into `code/`, with checksums."""


MOST_BYTES = 64 * 2**20
"""Size of the files of a package that are copied at most."""


def keep_code(folder: Path, spec: StudySpec) -> None:
    """Copy the code that a study names into its folder; its lock is held.

    Raises:
        SpecError: if an import path leads nowhere.
        StudyError: if a file that is not the program's is in the way, or a package is too large.
    """
    copies = code_files(spec)
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


def code_files(spec: StudySpec) -> dict[str, Path]:
    """Files of the user's own code that a study uses, by their name in its `code/`.

    The code that the search space names is imported.

    Raises:
        SpecError: if an import path leads nowhere.
        StudyError: if a package is too large.
    """
    return dict(_copies(import_plugins(spec)))


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


@contextmanager
def study_code(folder: Path) -> Iterator[None]:
    """Let this process import a study's own copy of its code, and nothing else of these names.

    What was imported before under these names (from another study, or by a notebook) is put aside,
    and is back afterwards.
    """
    kept = code_folder(folder)
    if kept is None:
        yield
        return
    names = {Path(name).parts[0].removesuffix(".py") for name in _listed(kept)}
    before = _take_modules(names)
    sys.path.insert(0, str(kept))
    invalidate_caches()
    try:
        yield
    finally:
        _take_modules(names)
        sys.modules.update(before)
        sys.path.remove(str(kept))


def edited_code(folder: Path) -> list[str]:
    """Files of a study's code that are found elsewhere on the Python path with another content."""
    kept = code_folder(folder)
    if kept is None:
        return []
    places = [place for place in (Path.cwd(), *map(Path, sys.path)) if place != kept]
    edited = []
    for name, checksum in _listed(kept).items():
        file = next((place / name for place in places if (place / name).is_file()), None)
        if file is not None and hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            edited.append(name)
    return edited


def _listed(kept: Path) -> dict[str, str]:
    """Checksums of the files that the program copied, by name."""
    listed: dict[str, str] = json.loads((kept.parent / CODE_LIST).read_text())
    return listed


def _take_modules(names: set[str]) -> dict[str, ModuleType]:
    """Forget imported modules, and return them."""
    found = [name for name in sys.modules if _top_level(name) in names]
    return {name: sys.modules.pop(name) for name in found}


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
    """All files of a package, its data too, without those of studies that lie in it.

    Of a folder without `__init__.py` it is the Python files alone.

    Raises:
        StudyError: if they are too large to be copied.
    """
    folder = _package_folder(found)
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name != "__pycache__"
            and not (Path(place) / name / RESOLVED_SPEC).is_file()
        )
        files += [Path(place) / name for name in sorted(names) if not name.startswith(".")]
    # a folder without __init__.py may as well be one of data
    whole = (folder / "__init__.py").is_file()
    files = [file for file in files if file.is_file() and (whole or file.suffix == ".py")]
    sizes = {file: file.stat().st_size for file in files}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(files, key=lambda file: sizes[file])
        raise StudyError(
            f"the package {folder} holds more than {MOST_BYTES // 2**20} MB of files, the largest "
            f"{largest}: the study would keep a copy of them; keep data outside the package, or "
            "install it on each node"
        )
    return files


def _imported(file: Path) -> set[str]:
    """Outermost packages that a Python file imports, wherever it does."""
    names: set[str] = set()
    if file.suffix != ".py":
        return names
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        # a template, or for another Python: what the study names was imported already
        return names
    for node in ast.walk(tree):
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
