"""The command `tune`: parses the arguments, calls what they name, chooses the exit code.

Exit codes: 0 done, 1 no usable result or most trials failed, 2 a mistake in the input,
130 interrupted.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import warnings
from collections.abc import Sequence

from training.errors import SegtuneError
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
    _quieten_libraries()
    from rich.console import Console

    _replace_unencodable_characters()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=140, soft_wrap=True)
    try:
        with sigterm_interrupts():
            refuse_urls(options)
            code: int = options.command(options, out)
            return code
    except KeyboardInterrupt:
        errors.print("interrupted", markup=False)
        return INTERRUPTED
    except SegtuneError as error:
        errors.print(f"error: {error}", markup=False, style="red" if errors.is_terminal else "")
        return USER_ERROR


PLAIN_CHARACTERS = {"·": "-", "×": "x", "…": "..."}
"""What stands for a character that a terminal's encoding lacks; `?` for all others."""


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN_CHARACTERS.get(character, "?") for character in lacking), error.end


def _replace_unencodable_characters() -> None:
    """Write something else where a terminal's encoding (ASCII, say) lacks a character."""
    codecs.register_error("segtune.plain", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="segtune.plain")


def _quieten_libraries() -> None:
    """Keep advice meant for programmers away from people who type commands."""
    # Lightning sets the level of its top logger on import, but not of those that speak
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.ERROR)
    # what is wrong with a header is said with the name of the file
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    # a trial that goes on after a failure is a new one to Tune, which counts the first as lost
    logging.getLogger("ray.tune.tune").addFilter(_is_no_count_of_trials)
    for library in ("pytorch_lightning", "monai", "torch", "ray", "optuna"):
        warnings.filterwarnings("ignore", module=library)


def _is_no_count_of_trials(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Trials did not complete")


if __name__ == "__main__":
    sys.exit(main())
