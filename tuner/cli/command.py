"""What a command of `tune` is, and how its help is written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

SubParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What commands are added to."""


@dataclass(frozen=True)
class Command:
    """A command of `tune`.

    Attributes:
        name: What is typed; two words for a command of a group, such as `data check`.
        summary: What it does, in one line.
        examples: Command lines that work as they are printed.
        add_options: Adds its arguments and options to a parser.
        run: Runs it with the parsed options, and returns the exit code.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one, and leaves examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        complete = action.default is None or isinstance(action.default, bool | list)
        return action.help if complete else super()._get_help_string(action)
