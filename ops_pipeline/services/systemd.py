"""What systemd says about a unit: reading the output of `systemctl show`.

What belongs here: the meaning of its properties, pure. What does not: running it (`looks`).
"""

from __future__ import annotations

from ops_pipeline.services.states import DOWN, STARTING, STOPPED, UNKNOWN, UP, Look

PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "TriggeredBy", "NRestarts")


def properties_of(output: str) -> dict[str, str]:
    """The properties of one unit."""
    pairs = (line.partition("=") for line in output.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def sockets_of(properties: dict[str, str]) -> list[str]:
    """The socket units that wake a service."""
    return [unit for unit in properties.get("TriggeredBy", "").split() if unit.endswith(".socket")]


def look_of(unit: str, properties: dict[str, str], *, socket_listens: bool = False) -> Look:
    """What the properties say.

    Args:
        unit: its name.
        properties: as `systemctl show` tells them.
        socket_listens: whether a socket that wakes the unit is active, so that being idle is healthy.
    """
    load, active = properties.get("LoadState", ""), properties.get("ActiveState", "")
    if not active or load == "not-found":
        return Look(UNKNOWN, f"systemd knows no unit {unit}" if active else f"systemctl told nothing about {unit}")
    if load == "masked" or properties.get("UnitFileState") in {"masked", "masked-runtime"}:
        return Look(STOPPED, f"{unit} is masked")
    shown = f"{unit} is {active} ({properties.get('SubState', '')})"
    if active == "inactive":
        if socket_listens:
            return Look(UP, f"{unit} is idle, its socket listens")
        if load != "loaded":
            return Look(UNKNOWN, f"systemd cannot load {unit}: {load}")
        # Without a failure: somebody stopped or disabled it, and is not fought.
        return Look(STOPPED, f"{shown}, {properties.get('UnitFileState') or 'no unit file'}")
    return Look(_of_active(active, properties.get("SubState", "")), _more(shown, properties))


def _of_active(active: str, sub: str) -> str:
    if active in {"active", "refreshing"}:
        return UP
    # Between two starts of a unit that crashes again and again it is activating, too.
    return DOWN if active == "failed" or sub.startswith("auto-restart") else STARTING


def _more(shown: str, properties: dict[str, str]) -> str:
    if properties.get("ActiveState") == "active":
        return shown
    return f"{shown}, result {properties.get('Result', '?')}, restarted {properties.get('NRestarts', '?')} times"
