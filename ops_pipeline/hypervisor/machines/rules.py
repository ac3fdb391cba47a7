"""What an observed state means for the platform's status: one pure table, complete for every pair.

The statuses are those of the platform and of its earlier versions; a status that is not among them is left alone and
reported. `off` (a user switched it off), `stopped` (the hypervisor shows it) and nothing running mean the same, as do
`suspended` and `paused`: one is never replaced by the other.

What belongs here: rules over (status, observed state and reason, age). What does not: matching, any I/O, any clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache

RUNNING, BLOCKED, PAUSED, SHUTTING_DOWN = "running", "blocked", "paused", "shutting_down"
SHUTOFF, CRASHED, PMSUSPENDED, MISSING, UNKNOWN = "shutoff", "crashed", "pmsuspended", "missing", "unknown"

STATES = {
    1: RUNNING,
    2: BLOCKED,
    3: PAUSED,
    4: SHUTTING_DOWN,
    5: SHUTOFF,
    6: CRASHED,
    7: PMSUSPENDED,
}
"""By libvirt's number (`virDomainState`); everything else is unknown."""
OBSERVED_STATES = (*STATES.values(), MISSING, UNKNOWN)

REASONS = {
    RUNNING: {1: "booted", 2: "migrated", 3: "restored", 4: "from_snapshot", 5: "unpaused", 6: "migration_canceled"}
    | {7: "save_canceled", 8: "wakeup", 9: "crashed", 10: "postcopy", 11: "postcopy_failed"},
    PAUSED: {1: "user", 2: "migration", 3: "save", 4: "dump", 5: "io_error", 6: "watchdog", 7: "from_snapshot"}
    | {8: "shutting_down", 9: "snapshot", 10: "crashed", 11: "starting", 12: "postcopy", 13: "postcopy_failed"}
    | {14: "api_error"},
    SHUTTING_DOWN: {1: "user"},
    SHUTOFF: {1: "shutdown", 2: "destroyed", 3: "crashed", 4: "migrated", 5: "saved", 6: "failed", 7: "from_snapshot"}
    | {8: "daemon"},
    CRASHED: {1: "panicked"},
}
"""By libvirt's number (`virDomain…Reason`)."""

ALERTS = {
    (PAUSED, "io_error"): "paused by an I/O error: look at its storage, then resume it",
    (PAUSED, "crashed"): "paused because the guest crashed",
    (PAUSED, "postcopy_failed"): "paused because its migration failed half way",
    (PAUSED, "api_error"): "paused because an operation of libvirt failed",
    (PAUSED, "watchdog"): "paused by its watchdog",
    (RUNNING, "postcopy_failed"): "its migration failed half way",
    (SHUTOFF, "crashed"): "crashed",
    (SHUTOFF, "migrated"): "migrated away from its host, where the platform still has it",
    (SHUTOFF, "failed"): "failed to start",
    (CRASHED, "panicked"): "crashed: the guest panicked",
    (CRASHED, ""): "crashed",
}
"""What an operator must look at, whatever the status."""

PASSING = {
    (PAUSED, reason)
    for reason in ("migration", "save", "dump", "from_snapshot", "shutting_down", "snapshot", "starting")
} | {(PAUSED, "postcopy"), (PAUSED, "postcopy_failed"), (SHUTOFF, "migrated")}
"""Seen while an operation goes on, or on the host that a machine has left: nothing follows for the status."""


class Group(StrEnum):
    """What a status means for this job."""

    UP = "up"
    DOWN = "down"
    HALTED = "halted"
    TRANSITION = "transition"
    LOCK = "lock"
    ENDED = "ended"
    ERROR = "error"
    STRANGE = "strange"


GROUPS = {
    **dict.fromkeys(("running",), Group.UP),
    **dict.fromkeys(("off", "stopped"), Group.DOWN),
    **dict.fromkeys(("suspended", "paused"), Group.HALTED),
    **dict.fromkeys(("starting", "updating_hardware", "powering_off_update", "rebuilding"), Group.TRANSITION),
    **dict.fromkeys(("deleting", "moving", "building"), Group.TRANSITION),
    **dict.fromkeys(("backing_up", "restoring", "snapshotting", "capturing"), Group.LOCK),
    **dict.fromkeys(("archived", "delete_failed"), Group.ENDED),
    **dict.fromkeys(("error", "failed", "error_hardware_update"), Group.ERROR),
}


class Meaning(StrEnum):
    """What an observed state means."""

    UP = "up"
    DOWN = "down"
    HALTED = "halted"
    GONE = "gone"
    OPEN = "open"


class Act(StrEnum):
    """What is done about a pair."""

    KEEP = "keep"
    RUN = "running"
    STOP = "stopped"
    SUSPEND = "suspended"
    STOP_IF_CONFIRMED = "stopped after some looks"
    TELL_GONE = "missing"
    CONFLICT = "conflict"
    WAIT = "stuck in time"
    STRANGE = "unknown status"


TABLE: dict[Group, dict[Meaning, Act]] = {
    Group.UP: {
        Meaning.UP: Act.KEEP,
        Meaning.DOWN: Act.STOP,
        Meaning.HALTED: Act.SUSPEND,
        Meaning.GONE: Act.STOP_IF_CONFIRMED,
        Meaning.OPEN: Act.KEEP,
    },
    Group.DOWN: {
        Meaning.UP: Act.RUN,
        Meaning.DOWN: Act.KEEP,
        Meaning.HALTED: Act.SUSPEND,
        Meaning.GONE: Act.TELL_GONE,
        Meaning.OPEN: Act.KEEP,
    },
    Group.HALTED: {
        Meaning.UP: Act.RUN,
        Meaning.DOWN: Act.STOP,
        Meaning.HALTED: Act.KEEP,
        Meaning.GONE: Act.STOP_IF_CONFIRMED,
        Meaning.OPEN: Act.KEEP,
    },
    Group.TRANSITION: dict.fromkeys(Meaning, Act.WAIT),
    Group.LOCK: dict.fromkeys(Meaning, Act.WAIT),
    Group.ENDED: {
        Meaning.UP: Act.CONFLICT,
        Meaning.DOWN: Act.KEEP,
        Meaning.HALTED: Act.CONFLICT,
        Meaning.GONE: Act.KEEP,
        Meaning.OPEN: Act.KEEP,
    },
    Group.ERROR: {
        Meaning.UP: Act.CONFLICT,
        Meaning.DOWN: Act.KEEP,
        Meaning.HALTED: Act.CONFLICT,
        Meaning.GONE: Act.KEEP,
        Meaning.OPEN: Act.KEEP,
    },
    Group.STRANGE: dict.fromkeys(Meaning, Act.STRANGE),
}


@dataclass(frozen=True)
class Policy:
    """What the operator decides.

    Attributes:
        stopped: the platform's word for a machine that is down.
        missing_looks: so many looks in a row must miss a domain before anything follows.
        stuck_after: the longest that a transition may take.
        lock_stuck_after: the longest that a disk operation may take.
    """

    stopped: str = "stopped"
    missing_looks: int = 3
    stuck_after: timedelta = timedelta(hours=1)
    lock_stuck_after: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Verdict:
    """What follows for one machine.

    Attributes:
        status: the status that it gets; None to leave it.
        reason: why, in words.
        finding: what is reported besides: `conflict`, `stuck`, `missing`, `strange`, or empty.
    """

    status: str | None = None
    reason: str = ""
    finding: str = ""


NOTHING = Verdict()


@cache
def observed(state: int, reason: int) -> tuple[str, str]:
    """The numbers of libvirt in words; an unknown reason is empty."""
    word = STATES.get(state, UNKNOWN)
    return word, REASONS.get(word, {}).get(reason, "")


def group_of(status: str) -> Group:
    """What a status means for this job."""
    return GROUPS.get(status, Group.STRANGE)


def meaning_of(state: str, reason: str) -> Meaning:
    """What an observed state means."""
    if (state, reason) in PASSING:
        return Meaning.OPEN
    return _MEANINGS.get(state, Meaning.OPEN)


_MEANINGS = {
    RUNNING: Meaning.UP,
    BLOCKED: Meaning.UP,
    PAUSED: Meaning.HALTED,
    PMSUSPENDED: Meaning.HALTED,
    SHUTOFF: Meaning.DOWN,
    CRASHED: Meaning.DOWN,
    MISSING: Meaning.GONE,
}


def alert_of(status: str, state: str, reason: str) -> str:
    """What an operator must look at; empty when nothing."""
    group = group_of(status)
    # What a user switched off or archived may have crashed long ago; a machine that is moved leaves its host.
    if status == "off" or group is Group.ENDED or (group is Group.TRANSITION and reason == "migrated"):
        return ""
    return ALERTS.get((state, reason), "")


@cache
def _act(status: str, state: str, reason: str) -> Act:
    return TABLE[group_of(status)][meaning_of(state, reason)]


@cache
def is_quiet(status: str, state: str, reason: str) -> bool:
    """Whether nothing follows from a pair at any age: what all machines but a few are, and told at the least cost."""
    return _act(status, state, reason) is Act.KEEP and not alert_of(status, state, reason)


def judge(
    status: str, state: str, reason: str, age: timedelta, *, looks: int = 0, policy: Policy | None = None
) -> Verdict:
    """What follows from a look at one machine.

    Args:
        status: the platform's.
        state: one of `OBSERVED_STATES`.
        reason: libvirt's, in words.
        age: for how long the machine had its status when the look began; below zero, the status is newer than the
            look, from which nothing follows then.
        looks: how many looks in a row have missed the domain, this one included.
        policy: what the operator decides.
    """
    rule = policy or Policy()
    act = _act(status, state, reason)
    if act is Act.KEEP or age < timedelta(0):
        return NOTHING
    seen = f"its domain is {state}{f' ({reason})' if reason else ''}"
    words = {Act.RUN: "running", Act.SUSPEND: "suspended", Act.STOP: rule.stopped}
    if act in words:
        return Verdict(words[act], seen)
    if act in {Act.STOP_IF_CONFIRMED, Act.TELL_GONE}:
        return _gone(act, status, looks, rule)
    if act is Act.WAIT:
        return _waiting(status, age, rule)
    if act is Act.CONFLICT:
        return Verdict(None, f"the status is {status}, but {seen}", "conflict")
    return Verdict(None, f"this program does not know the status {status!r}", "strange")


def _gone(act: Act, status: str, looks: int, policy: Policy) -> Verdict:
    # `off` without a domain is what a transient domain leaves; `stopped` without one is what this job found.
    if looks < policy.missing_looks or (act is Act.TELL_GONE and status != "stopped"):
        return NOTHING
    after = policy.stopped if act is Act.STOP_IF_CONFIRMED else None
    return Verdict(after, "its host does not know its domain", "missing")


def _waiting(status: str, age: timedelta, policy: Policy) -> Verdict:
    longest = policy.lock_stuck_after if group_of(status) is Group.LOCK else policy.stuck_after
    if age <= longest:
        return NOTHING
    return Verdict(None, f"{status} for longer than {_words(longest)}", "stuck")


def _words(span: timedelta) -> str:
    minutes = span.total_seconds() / 60
    return f"{minutes / 60:g} hours" if minutes >= 120 else f"{minutes:g} minutes"
