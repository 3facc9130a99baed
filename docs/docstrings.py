"""Docstrings are written in Markdown with Google's sections; autodoc reads reStructuredText."""

from __future__ import annotations

import re

from docutils import nodes
from pydantic import BaseModel

CODE = re.compile(r"(?<!`)`((?:[^`\n]|\n(?![ ]*\n))+)`(?!`)")
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
            # what is not code has no substitutions
            pieces = CODE.split(part)
            pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
            pieces[1::2] = [f"``{piece.strip()}``" for piece in pieces[1::2]]
            fences[index] = "".join(pieces)
    lines[:] = "".join(fences).splitlines()


def to_dashes(app: object, doctree: nodes.document) -> None:
    """Replace the two hyphens that Sphinx puts between a name and its text, in place."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def hide_fields(
    app: object, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """The signature of a model: its fields are on a page of their own."""
    if isinstance(obj, type) and issubclass(obj, BaseModel):
        return "(**fields)", ""
    return None
