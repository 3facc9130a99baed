"""The command `tune`: parses the arguments, runs the command, returns the exit code.

Exit codes: 0 done, 1 no usable result or most trials failed, 2 a mistake in the input,
130 interrupted.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Sequence

from training.errors import SegtuneError
from tuner.api.libraries import quiet_libraries
from tuner.cli.completion import complete
from tuner.cli.exit_codes import INTERRUPTED, USER_ERROR
from tuner.cli.options import refuse_urls
from tuner.cli.parser import build_parser
from tuner.signals import sigterm_interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code.
    """
    parser = build_parser()
    complete(parser)
    options = parser.parse_args(arguments)
    from rich.console import Console

    from tuner.report.console import output_console

    _replace_unencodable_characters()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with sigterm_interrupts(), quiet_libraries():
            refuse_urls(options)
            code: int = options.command(options, output_console())
            return code
    except KeyboardInterrupt:
        errors.print("interrupted", markup=False)
        return INTERRUPTED
    except SegtuneError as error:
        errors.print(f"error: {error}", markup=False, style="red" if errors.is_terminal else "")
        return USER_ERROR


PLAIN_CHARACTERS = {"·": "-", "×": "x", "…": "..."}
"""Replacements of characters that a terminal's encoding lacks; all others become `?`."""


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN_CHARACTERS.get(character, "?") for character in lacking), error.end


def _replace_unencodable_characters() -> None:
    """Replace characters that a terminal's encoding (e.g. ASCII) lacks."""
    codecs.register_error("segtune.plain", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="segtune.plain")


if __name__ == "__main__":
    sys.exit(main())
