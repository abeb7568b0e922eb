"""HTML that is escaped by construction: text is text unless it was built here."""

import base64
import hashlib
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


def document(title: str, body: Html, *, style: str, script: str = "") -> str:
    """A whole page that loads nothing, and whose policy allows no script or style but these."""
    allowed = [f"style-src {_digest(style)}", *([f"script-src {_digest(script)}"] if script else [])]
    policy = "; ".join(["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"])
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _digest(text: str) -> str:
    """What a Content-Security-Policy calls an inline text by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
