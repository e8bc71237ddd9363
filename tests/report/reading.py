"""Reads a report as a browser would, far enough to check it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclass
class Node:
    """One element with its attributes, its children and its own text."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Yield this element and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag: str, class_: str = "") -> list[Node]:
        """Return all elements of a tag, with a class where one is given."""
        return [node for node in self.walk()
                if node.tag == tag and (not class_ or class_ in node.classes)]  # fmt: skip

    @property
    def classes(self) -> list[str]:
        """The element's classes."""
        return self.attributes.get("class", "").split()

    @property
    def text(self) -> str:
        """All text, in an order good enough for searching."""
        return " ".join(piece for node in self.walk() for piece in node.texts)


class Reader(HTMLParser):
    """Builds nodes and notes every tag that does not close what was opened."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("document")
        self.open = [self.root]
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len(attrs) != len(dict(attrs)):
            self.faults.append(f"attribute twice in {tag}")
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag != tag:
            self.faults.append(f"</{tag}> closes <{self.open[-1].tag}> at {self.getpos()}")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)


def read(html: str) -> Node:
    """Return the tree of a page; raises AssertionError where its tags do not match."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.faults, reader.faults[:5]
    assert reader.open == [reader.root], [node.tag for node in reader.open]
    return reader.root
