"""The documentation builds strictly, its snippets are valid, and it leaves nothing out."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml

import training
import tuner
from training import registry
from training.models import build_model
from tuner.cli import exit_codes
from tuner.cli.parser import COMMANDS, build_parser
from tuner.search.policies import POLICIES
from tuner.search.searchers import SEARCHERS
from tuner.spec.domains import DOMAINS
from tuner.spec.load import parse_spec
from tuner.spec.plugins import import_plugins
from tuner.spec.reference import all_fields, config_fields, policy_fields, sections
from tuner.study import files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *PAGES]


def snippets(language: str) -> Iterator[tuple[str, str]]:
    """Where each block of a language stands, and its text."""
    for page in DOCUMENTS:
        text = page.read_text()
        for found in re.finditer(rf"```{language}\n(.*?)```", text, flags=re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            yield f"{page.relative_to(ROOT)}:{line}", found[1]


def parametrised(language: str) -> pytest.MarkDecorator:
    found = list(snippets(language))
    return pytest.mark.parametrize("text", [text for _, text in found], ids=[at for at, _ in found])


class _Page(HTMLParser):
    """Ids, links and loaded resources of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loads = tag in {"script", "img"} or (tag == "link" and given.get("rel") == "stylesheet")
        if loads and (place := given.get("src", given.get("href", ""))):
            self.loaded.append(place)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("furo") is None:
        message = "the extra docs is not installed: pip install '.[docs]'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    result = subprocess.run(
        [*build, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "html"


def test_every_page_is_built_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html")}
    built = {str(path.relative_to(site.resolve()).with_suffix("")) for path in pages}
    assert {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} <= built
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].ids
            ):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """It is read where there is no network."""
    for path in site.rglob("*.html"):
        assert [place for place in _Page(path.read_text()).loaded if urlsplit(place).netloc] == []
    for path in (site / "_static").rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text()) == []


def shown(site: Path, page: str) -> str:
    """The text of a page as a person reads it, on one line."""
    text = (site / "reference" / f"{page}.html").read_text()
    return " ".join(re.sub(r"<[^>]+>", "", text.partition("<article")[2]).split())


def test_every_field_and_setting_is_in_the_reference(site: Path) -> None:
    fields, space = shown(site, "fields"), shown(site, "search-space")
    policies = shown(site, "searchers-and-policies")
    for row in config_fields():
        assert f"{row.key}¶" in fields
        assert f"Default: {row.default}".replace("'", "&#39;") in fields
    for name in sections():
        assert name in space
    for row in all_fields():
        if row.section not in ("config", "policy"):
            assert row.key in space
    for policy in POLICIES:
        for row in policy_fields(policy):
            assert row.key in policies
    for name in DOMAINS:
        assert f"{name}: [" in space


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("networks", registry.MODELS),
        ("training-choices", registry.LOSSES),
        ("training-choices", registry.REGION_LOSSES),
        ("training-choices", registry.CLASS_WEIGHTS),
        ("training-choices", registry.OPTIMIZERS),
        ("training-choices", registry.LR_SCHEDULES),
        ("training-choices", registry.AUGMENTATIONS),
        ("searchers-and-policies", SEARCHERS),
        ("searchers-and-policies", POLICIES),
    ],
)
def test_every_entry_of_a_registry_is_in_the_reference(
    site: Path, page: str, names: dict[str, object]
) -> None:
    text = (site / "reference" / f"{page}.html").read_text()
    for name in names:
        assert f'<span class="pre">{name}</span>' in text


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    text = shown(site, "commands")
    for command in COMMANDS:
        assert f"tune {command.name}¶" in text
        for example in command.examples:
            assert html.escape(" ".join(example.split()), quote=False) in text.replace(
                "&quot;", '"'
            )
    for option in ("--studies-dir", "--warm-start", "--overwrite", "--size", "--set KEY=VALUE"):
        assert option in text


def test_every_public_name_of_both_packages_is_in_the_reference(site: Path) -> None:
    names = {name for name in tuner.__all__ if not name.startswith("_")}
    errors = {name for name in names if name.endswith("Error")}
    text = shown(site, "python-tuner")
    assert [name for name in sorted(names - errors) if f"tuner.{name}" not in text] == []
    text = shown(site, "errors")
    assert [name for name in sorted(errors) if f".{name}" not in text] == []
    text = shown(site, "python-training") + shown(site, "errors")
    assert [name for name in training.__all__ if f".{name}" not in text] == []


def test_every_exit_code_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "commands.md").read_text()
    codes = {value for value in vars(exit_codes).values() if type(value) is int}
    assert set(re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)) == set(map(str, codes))


def test_every_file_of_a_study_is_named(site: Path) -> None:
    text = (DOCS / "reference" / "study-folder.md").read_text()
    names = [
        value
        for name, value in vars(files).items()
        if name.isupper() and isinstance(value, str) and not name.endswith(("PATTERN", "FOLDER"))
    ]
    names = [name for name in names if "." in name and not name.startswith(".")]
    assert "metrics.csv" in names
    assert [name for name in (*names, *files.CHECKPOINT_FILES) if name not in text] == []


@parametrised("yaml")
def test_a_search_space_in_the_documents_is_valid(text: str) -> None:
    """A part of a search space is checked in a small one."""
    small = {
        "config": {"data_dir": "phantom"},
        "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
    }
    given = yaml.safe_load(text)
    if "learning_rate" in given.get("config", {}):
        del small["space"]
    parse_spec(yaml.safe_dump({**small, **given}, sort_keys=False), source="document.yaml")


def commands_in(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words.pop(0)
        if words[:1] == ["docker"] and "tune" in words:
            words = words[words.index("tune") :]
        if words:
            yield words


@parametrised("bash")
def test_commands_in_the_documents_are_understood(text: str) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in commands_in(text):
        if words[0] in ("tune", "segtune") and words[1:] != ["--version"]:
            build_parser().parse_args(words[1:])
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)


def test_the_plug_ins_of_the_documentation_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    page = (DOCS / "how-to" / "plug-ins.md").read_text()
    code, checks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (space,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_lab.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path])
    request.addfinalizer(lambda: sys.modules.pop("my_lab", None))
    spec = parse_spec(space, source=tmp_path / "space.yaml")
    found = import_plugins(spec)
    assert set(found) == {
        f"my_lab:{name}" for name in ("TinyNet", "SmoothCrossEntropy", "volume_error", "first_draw")
    }
    config = spec.trial_config({"model_name": "my_lab:TinyNet", "model_params.width": 4})
    logits = build_model(config)(torch.zeros(1, 1, 8, 8, 8))
    assert logits.shape == (1, config.num_classes, 8, 8, 8)
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    assert found["my_lab:SmoothCrossEntropy"]()(logits.detach(), labels) > 0
    assert found["my_lab:volume_error"](torch.ones(3), torch.tensor([1, 0, 1])) == 0.5
    assert math.isnan(found["my_lab:volume_error"](labels, labels))
    written: dict[str, Any] = {}
    exec(compile(checks, "plug-ins.md", "exec"), written)
    written["test_my_lab"]()


@parametrised("python")
def test_python_in_the_documents_compiles_and_its_names_exist(text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.partition(".")[0] not in ("training", "tuner"):
                continue
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("tuner", "training")
        ):
            assert hasattr(importlib.import_module(node.value.id), node.attr), node.attr
