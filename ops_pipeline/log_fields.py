"""What a line of a log says besides its words: host or object, reason, duration.

What belongs here: the one way in which every module hands such fields to `logging`. How lines look is decided in
`operations/logs.py`.
"""

from __future__ import annotations

from typing import Any


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call: `log.debug("…", extra=fields(host="h1", reason="…", duration_seconds=0.2))`.

    Handed as one attribute, so that no name can be one of a record's own. Values must be JSON and free of secrets; the
    words of the line must be enough for a person, who sees no fields in the UI.
    """
    return {"fields": values}
