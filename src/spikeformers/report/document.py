"""The frame of every page: one file without scripts or requests."""

from __future__ import annotations

import os
from pathlib import Path

from spikeformers.report.markup import Markup, tag


def document(title: str, *body: object) -> str:
    """Return an HTML page with the house's style."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        # An empty icon keeps browsers from asking a server for one.
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def write_page(path: Path, page: str) -> Path:
    """Write a page, completely or not at all, and return its path."""
    # Renamed over the old page, so that a browser never loads half a page.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
