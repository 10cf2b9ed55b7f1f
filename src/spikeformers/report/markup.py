"""HTML that cannot be forgotten to escape: text is escaped unless it is `Markup` already."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML and goes into the page as it is."""

    __slots__ = ()


# These have no closing tag.
_VOID = frozenset({"br", "col", "img", "link", "meta"})


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Write an element: `tag("td", 3, class_="number")` is `<td class="number">3</td>`.

    Args:
        name: Element name.
        children: Content in order; whatever is not `Markup` is escaped.
        attributes: Attributes; `_` stands for `-`, a trailing one is dropped, and `None` leaves
            the attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*parts: object) -> Markup:
    """Put parts one after another; whatever is not `Markup` is escaped."""
    return Markup(
        "".join(part if isinstance(part, Markup) else escape(str(part)) for part in parts)
    )
