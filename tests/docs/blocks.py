"""Find the code blocks of the pages, and what each page says about them.

A block may have a comment of HTML on a line of its own before it, with at most a blank line between:

- `<!-- run: SCENE -->` names the scene in which the block is run; see `SCENES`. Without a comment, it is that of its language.
- `<!-- tested: PATH -->` names the test that runs the block, where that needs more than a scene.
- `<!-- not run: REASON -->` says why it cannot be run.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "clients/*/*.md")
    for path in sorted(ROOT.glob(pattern))
]

SCENES = {
    "python": {"python"},
    "reranker": {"python", "sh"},
    "sh": {"sh"},
    "own": {"sh"},
    "port": {"sh"},
    "open port": {"sh"},
    "json": {"json"},
    "members": {"json"},
    "config": {"json"},
    "manifest": {"json"},
    "yaml": {"yaml"},
}
"""The languages of each scene.

`python` and `sh` have a daemon of MiniLM, which other blocks share, and `reranker` has one that reranks. `own` has a home that
no other block uses, so that the block may change it. `port` and `open port` have one whose daemon serves a port, with and
without token. `json` and `yaml` are read; `members` are those of a JSON object. `config` and `manifest` are read by runed.
"""

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<verb>run|tested|not run): (?P<rest>.+?) -->\n\n?)?"
    r"^(?P<fence> *```+)(?P<language>[a-z]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The path of its page in the repository.
        line: The number of its first line.
        language: Its language, or "".
        text: Its content.
        verb: "run", "tested" or "not run".
        rest: What the comment says after the verb; the scene of "run".
    """

    page: str
    line: int
    language: str
    text: str
    verb: str
    rest: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the blocks of a page."""
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
            found["verb"] or "run",
            found["rest"] or found["language"],
        )
        for found in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text())]


def scene(name: str, language: str) -> list[Block]:
    """Return the blocks that are run in a scene."""
    return [block for block in BLOCKS if block.verb == "run" and block.rest == name and block.language == language]
