"""What is committed is the product, and its documents name files that are there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "docker",
    "docs",
    "pyproject.toml",
    "search_spaces",
    "tests",
    "training",
    "tuner",
}
"""All that lies at the top; whoever adds to it says so in ARCHITECTURE.md."""

KINDS = {
    ".py",
    ".typed",
    ".md",
    ".yaml",
    ".toml",
    ".txt",
    ".json",
    ".npz",
    ".csv",
    ".css",
    ".sh",
    "",
}
"""Endings of files that belong into a checkout."""

LARGEST_PICTURE = 200_000
"""Bytes of a picture of the documentation at most."""

NOTES = re.compile(
    r"do not commit|delete when read|hard deadline|report by \d|from the lead|\bFIXME\b|\bTODO\b",
    re.IGNORECASE,
)
"""Words of notes between people."""

DOCUMENTS = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docker/README.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)


@pytest.fixture(scope="module")
def committed() -> list[Path]:
    """Files of the checkout that git knows."""
    if not (ROOT / ".git").exists():
        message = f"{ROOT} is not a git checkout: the committed files are not known"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # a file that was just removed is listed until the next commit
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_strays_at_the_top(committed: list[Path]) -> None:
    assert {path.parts[0] for path in committed} <= TOP_LEVEL


def test_files_are_of_kinds_that_belong_here(committed: list[Path]) -> None:
    def belongs(path: Path) -> bool:
        if path.suffix == ".png":
            # pictures of the documentation, which a clone can bear
            return path.parts[0] == "docs" and (ROOT / path).stat().st_size <= LARGEST_PICTURE
        return path.suffix in KINDS

    assert [str(path) for path in committed if not belongs(path)] == []


def test_no_file_is_a_note_between_people(committed: list[Path]) -> None:
    texts = [path for path in committed if path.suffix in {".md", ".txt", ".py", ".yaml", ".toml"}]
    notes = [
        f"{path}: {found[0]}"
        for path in texts
        if (found := NOTES.search((ROOT / path).read_text()))
        and path != Path(__file__).relative_to(ROOT)
    ]
    assert notes == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    folder = (ROOT / document).parent
    named = re.findall(
        r"`((?:training|tuner|tests|docker|search_spaces)/[\w./-]*\.(?:py|md|yaml))`", text
    )
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [target for target in linked if not (folder / target).exists()]
    assert missing == []


def test_the_plan_of_the_house_names_no_module_that_is_not_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    plan = text.split("```")[1]
    named = set(re.findall(r"\b(\w+\.py)\b", plan))
    there = {
        path.name for package in ("training", "tuner") for path in (ROOT / package).rglob("*.py")
    }
    assert named <= there, sorted(named - there)
