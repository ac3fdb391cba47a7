"""What a line of a log says besides its words: host or object, reason, duration.

What belongs here: the one way in which every module hands such fields to `logging`. How lines look is decided in
`operations/logs.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

from ops_pipeline.reconcile import Change

MOST_CHANGES = 1000


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call: `log.debug("…", extra=fields(host="h1", reason="…", duration_seconds=0.2))`.

    Handed as one attribute, so that no name can be one of a record's own. Values must be JSON and free of secrets; the
    words of the line must be enough for a person, who sees no fields in the UI.
    """
    return {"fields": values}


def tell_changes(log: logging.Logger, changes: Iterable[Change]) -> None:
    """Tell each change with its object and reason, as a detail; the first thousand of them."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for one in islice(changes, MOST_CHANGES):
        known = fields(object=one.key, action=one.action, before=one.planned_from, reason=one.reason)
        log.debug("%s: %s, because %s", one.key, one.action, one.reason or "it is due", extra=known)
