"""Completion in a shell: commands, options, and names of studies."""

from __future__ import annotations

import argparse

import argcomplete
from argcomplete.shell_integration import shellcode

SHELLS = ("bash", "zsh", "fish")

PROGRAMS = ("tune", "segtune")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and end the process; else do nothing."""
    argcomplete.autocomplete(parser)


def shell_code(shell: str) -> str:
    """Code that a shell runs to complete our commands.

    Args:
        shell: One of `SHELLS`.
    """
    return str(shellcode(PROGRAMS, shell=shell))
