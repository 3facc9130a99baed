from __future__ import annotations

import io

from rich.console import Console

from tuner.report.preparation import preparation_view


def shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)
    with preparation_view(console) as (tell, advance):
        tell("preprocessing 4 cases of [data]")
        for done in range(5):
            advance("preprocessing", done, 4)
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    return output


def test_a_terminal_shows_a_bar() -> None:
    output = shown(terminal=True)
    assert "preprocessing 4 cases of [data]" in output
    assert "4/4" in output
    assert "━" in output


def test_a_log_has_lines_alone() -> None:
    assert shown(terminal=False) == "preprocessing 4 cases of [data]\n"


def test_nothing_is_shown_without_a_console() -> None:
    with preparation_view(None) as (tell, advance):
        tell("a line")
        advance("reading", 1, 2)
