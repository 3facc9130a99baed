"""The help of the commands, and what shells complete."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.cli.command import Command, HelpFormatter
from tuner.cli.completion import SHELLS
from tuner.cli.main import main
from tuner.cli.parser import COMMANDS, build_parser

EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def parser_of(command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser


@EVERY
def test_every_example_can_be_typed(command: Command) -> None:
    assert command.examples
    for example in command.examples:
        words = shlex.split(example, comments=True)
        if words[0] == "eval":
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        words = words[: words.index(">")] if ">" in words else words
        assert " ".join(words).startswith(f"tune {command.name}")
        build_parser().parse_args(words[1:])


@EVERY
def test_help_tells_every_default_and_has_examples(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.name.split(), "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for example in command.examples:
        assert " ".join(example.split()) in shown
    for action in parser_of(command)._actions:
        assert action.help
        if action.option_strings and action.nargs != 0 and not action.required:
            explained = HelpFormatter("tune")._get_help_string(action)
            assert "(default: " in str(explained), action.option_strings


def completions(line: str, folder: Path) -> set[str]:
    """What a shell gets when TAB is pressed at the end of `line`, as argcomplete's code asks."""
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "answer"),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run(
        [sys.executable, "-m", "tuner.cli.main"], cwd=folder, env=environment, check=True
    )
    return set((folder / "answer").read_text().split("\n"))


def test_a_shell_completes_commands_options_and_studies(tmp_path: Path) -> None:
    for name in ("liver", "lung", "spleen"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "spec.resolved.yaml").touch()
    assert completions("tune re", tmp_path) == {"resume"}
    assert {"--export", "--num-trials"} <= completions("tune run --", tmp_path)
    assert completions("tune status --studies-dir mine l", tmp_path) == {"liver", "lung"}
    assert completions("tune status l", tmp_path) == {""}
    assert completions("tune fields search.num", tmp_path) == {"search.num_trials"}
    assert completions("tune fields learning", tmp_path) == {"learning_rate"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_code_for_a_shell_is_valid_there(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "segtune" in code
    program = shutil.which(shell)
    if program is not None:
        result = subprocess.run([program, "-n"], input=code, text=True, check=False)
        assert result.returncode == 0
