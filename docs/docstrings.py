"""Docstrings are written in Markdown with Google's sections; autodoc reads reStructuredText."""

from __future__ import annotations

import re

CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)]+)\)")


def to_rst(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Replace what Markdown writes in another way, in place."""
    text = "\n".join(lines)
    fences = text.split("```")
    for index, part in enumerate(fences):
        if index % 2:
            body = part.partition("\n")[2]
            fences[index] = "::\n\n" + "\n".join(f"    {line}" for line in body.splitlines()) + "\n"
        else:
            part = LINK.sub(r"`\1 <\2>`__", part)
            fences[index] = CODE.sub(lambda found: f"``{found[1]}``", part)
    lines[:] = "".join(fences).replace("``````", "``").splitlines()
