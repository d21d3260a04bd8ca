"""Reads a page as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = '<script>alert("x")</script>$\\frac{&$'

VOID = {"meta", "br", "use", "path", "rect", "image"}


class Checker(HTMLParser):
    """Notes tags, names of parts, texts and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.names: list[str] = []
        self.described: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.described += [v for k, v in attrs if k == "aria-label" and v]
        self.names += [v for k, v in attrs if k == "id" and v]
        self.addresses += [v for k, v in attrs if k in {"src", "href", "xlink:href"} and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in VOID:
            return
        assert self.open, f"stray </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def read(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert len(set(checker.names)) == len(checker.names), "a name stands for two parts"
    assert {address.removeprefix("#") for address in checker.addresses} <= set(checker.names)
    return checker
