"""Reads a page as a browser would."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = '<script>alert("x")</script>$\\frac{&$'

VOID = {"meta", "br", "use", "path", "rect", "image", "wbr"}


class Checker(HTMLParser):
    """Notes what a reader meets.

    Attributes:
        tags: of the page.
        addresses: that a browser would fetch.
        links: that a reader may follow.
        text: outside drawings.
        names: of parts.
        described: what a screen reader says of drawings.
        hovered: what marks of drawings say under the mouse.
        sizes: of text in drawings, in their own units.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.names: list[str] = []
        self.described: list[str] = []
        self.hovered: list[str] = []
        self.sizes: list[float] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag == "text":  # of a drawing
            self.sizes += map(float, re.findall(r"font(?:-size)?: ([\d.]+)px", str(attrs)))
        self.described += [v for k, v in attrs if k == "aria-label" and v]
        self.names += [v for k, v in attrs if k == "id" and v]
        if tag == "a":  # fetched only when it is followed
            self.links += [v for k, v in attrs if k == "href" and v]
            attrs = []
        self.addresses += [v for k, v in attrs if k in {"src", "href", "xlink:href"} and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in VOID:
            return
        assert self.open, f"stray </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "title" and "svg" in self.open:
            self.hovered.append(data)
        elif "svg" not in self.open:
            self.text.append(data)


def read(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert len(set(checker.names)) == len(checker.names), "a name stands for two parts"
    assert {address.removeprefix("#") for address in checker.addresses} <= set(checker.names)
    return checker
