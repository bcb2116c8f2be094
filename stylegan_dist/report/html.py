"""HTML that cannot be broken by what it shows: plain text is escaped where it is put in."""

from __future__ import annotations

import html
import json
import re
from typing import Any

_EMPTY = {"img": ">", "input": ">", "link": ">", "meta": ">", "circle": "/>", "line": "/>", "path": "/>", "rect": "/>"}
SHORT = 24  # characters of a cell that stay on one line
_WRONG = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Html(str):
    """Text that is HTML already."""


def element(name: str, /, *children: str | None, **attributes: Any) -> Html:
    """One element.

    Args:
        children: an `Html` stays as it is, any other text is escaped, None is left out.
        attributes: `class_` is `class`, and other underscores are hyphens; True is an attribute without a value, None and False
            are none.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{html.escape(plain(str(value)))}"')
    if name in _EMPTY:
        return Html(f"<{' '.join(words)}{_EMPTY[name]}")
    return Html(f"<{' '.join(words)}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Html:
    """Elements and text one after the other, as the children of `element`."""
    return Html("".join(child if isinstance(child, Html) else html.escape(plain(child), quote=False)
                        for child in children if child is not None))


def plain(text: str) -> str:
    """Text without what HTML cannot hold: control characters, and bytes that were not UTF-8."""
    return _WRONG.sub("\ufffd", text)


def script_json(value: Any) -> Html:
    """JSON for a `<script type="application/json">`, which no text in it can end."""
    return Html(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def table(head: list[str], rows: list[list[str]], caption: str, numbers: bool = False, titled: bool = True) -> Html:
    """A table that scrolls by itself where it is too wide; the first column heads its rows.

    Args:
        numbers: no cell is broken into lines.
        titled: whether the caption is seen; a heading may say the same.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [element("tr", element("th", row[0], scope="row", class_=_width(row[0], numbers)),
                    *(element("td", cell, class_=_width(cell, numbers)) for cell in row[1:])) for row in rows]
    heading = element("caption", caption, class_=None if titled else "unseen")
    whole = element("table", heading, element("thead", top), element("tbody", *body), class_="numbers" if numbers else None)
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _width(cell: str, numbers: bool) -> str | None:
    """The class of cells that are not broken into lines; tables of numbers have no others."""
    return "short" if len(cell) <= SHORT and not numbers else None


def details(summary: str, *children: str | None, open_: bool = False) -> Html:
    return element("details", element("summary", summary), *children, open=open_)
