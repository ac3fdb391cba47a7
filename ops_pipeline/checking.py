"""The word that every part of `ops-pipeline check` uses for what it found.

What belongs here: `Check`. What does not: any looking, which the packages do for what is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ops_pipeline.settings import SettingsError


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: a variable, or what was looked at.
        ok: False when a run would fail on it.
        detail: what was found, and what to do when it is not ok.
        warning: ok, but hardly meant.
        usual: a variable that nobody set; there are many of these, and a person in a hurry wants none.
    """

    name: str
    ok: bool
    detail: str
    warning: bool = False
    usual: bool = False


def tried(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """What `look` found; a secret that it needs and that cannot be read is a finding too, under `name`."""
    try:
        return look()
    except SettingsError as error:
        return [Check(name, ok=False, detail=str(error))]
