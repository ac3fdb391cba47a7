"""Every message that a page explains is one that the code can say: whoever searches for its words must find them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SAID_OTHERWISE = {
    "disk I/O error",
    "database or disk is full",
    "names X, but no filter is bound to tap1",
    "Another start still runs",
}
"""By SQLite, by a script, or put together from parts."""
A_VALUE = re.compile(r"…|\b[XY]\b|\b\w*\d[\w:.%-]*|[:;(),]|\bdriver nvme\b")


def explained() -> Iterator[tuple[str, str]]:
    """What stands in quotes in the first column of a table that explains it, with its page."""
    for page in sorted(PROJECT.glob("docs/*.md")):
        explains = False
        for line in page.read_text().splitlines():
            first = line.strip("| ").partition(" | ")[0]
            explains = line.startswith("|") and (explains or "it means" in line)
            if explains:
                yield from ((page.name, message) for message in re.findall(r'"([^"]+)"', first))


def told(part: ast.expr, plural: int) -> str:
    """What a part of a text says: of a count the word that is counted, of other things that are filled in nothing."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    call = part.value if isinstance(part, ast.FormattedValue) else part
    if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "counted":
        return "\0"
    words = [word.value for word in call.args[1:] if isinstance(word, ast.Constant)]
    return f"\0 {[*words, f'{words[0]}s'][plural]}" if words else "\0"


def literals() -> Iterator[str]:
    """All text of the code; what is filled in is left out."""
    for file in PROJECT.glob("ops_pipeline/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                for plural in (0, 1):
                    yield "".join(told(part, plural) for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_code_can_say_what_the_pages_explain() -> None:
    """Two messages were explained under words that they no longer had."""
    said, messages = "\n".join(literals()), list(explained())
    assert len(messages) > 60
    missing = [
        f"{page}: {message}: {part.strip()}"
        for page, message in messages
        if message not in SAID_OTHERWISE
        for part in A_VALUE.split(message)
        if len(part.split()) > 1 and part.strip() not in said
    ]
    assert missing == []
