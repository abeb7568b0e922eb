"""HTML that is escaped by construction: text is text unless it was built here."""

import html

Attribute = str | int | float | bool | None
VOID = ("img", "input", "meta", "br")


class Html(str):
    """Markup, which goes into other markup as it is; every other text is escaped first."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: Attribute) -> Html:
    """One element.

    Args:
        name: of the element.
        children: markup, or text that is escaped.
        attributes: `class_` is class, `aria_label` is aria-label; True is an attribute without a value, None and
            False leave it out.
    """
    opened = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{opened}>")
    return Html(f"<{name}{opened}>{join(children)}</{name}>")


def join(parts: tuple[str, ...] | list[str]) -> Html:
    """Markup and text one after the other, the text escaped."""
    return Html("".join(part if isinstance(part, Html) else escaped(part) for part in parts))


def escaped(text: str) -> str:
    """Text for the inside of an element or a quoted attribute.

    Undecodable bytes of file names are surrogates, which a page cannot hold: they are spelt out.
    """
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'
