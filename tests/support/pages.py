"""Reads the blocks of code of a documentation page.

for block in blocks(ROOT / "docs" / "tutorial.rst"):
    if block.language == "console":
        run(block.commands)
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. code-block:: (?P<language>\S+)\n"
    r"(?P<options>(?:(?P=indent) +:[a-z-]+:.*\n)*)"
    r"\n(?P<body>(?:(?P=indent) +\S.*\n|[ \t]*\n)+)",
    re.MULTILINE,
)
_REASON = re.compile(r"\.\. not executed: (?P<reason>(?:.*\n)(?: +\S.*\n)*)\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of code, and the line of the page on which it begins."""

    page: str
    line: int
    language: str
    caption: str
    body: str
    not_executed: str
    """The reason why it is not executed, from a comment before the block; empty if it has none."""

    @property
    def steps(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with the output that the page shows for it."""
        steps: list[tuple[str, str]] = []
        for line in self.body.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], ""))
            elif steps:
                command, shown = steps[-1]
                steps[-1] = command, f"{shown}{line}\n"
        return steps


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = path.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        caption = re.search(r":caption: (.*)", match["options"])
        reason = _REASON.search(text[: match.start()])
        found.append(
            Block(
                page=path.name,
                line=text.count("\n", 0, match.start()) + 1,
                language=match["language"],
                caption=caption.group(1) if caption else "",
                body=textwrap.dedent(match["body"]).strip("\n") + "\n",
                not_executed=" ".join(reason["reason"].split()) if reason else "",
            )
        )
    return found


def shown_as(text: str) -> re.Pattern[str]:
    """Return a pattern for a line that a page shows: ``…`` is any text, and any number may have another value."""
    parts = re.split(r"(…|[0-9]+(?:\.[0-9]+)?|[ ]+)", text)
    patterns = {"…": ".*"}
    return re.compile(
        "".join(
            patterns.get(part)
            or (r"[ ]+" if part.isspace() else r"[0-9]+(?:\.[0-9]+)?" if part[:1].isdigit() else re.escape(part))
            for part in parts
            if part
        )
    )
