"""Looking at the root of generated applications, and whether what is seen can be believed.

What belongs here: the deadline, and the rules that tell a root from an empty mount point. What does not: the walk
itself (`walk`), and what follows for an application (`applications`).
"""

from __future__ import annotations

import json
import marshal
import subprocess
import sys
import uuid
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops_pipeline.reconcile import Unavailable

LOOK_SECONDS = 60.0
_PROJECT = str(Path(__file__).resolve().parents[3])
_RUN = "from ops_pipeline.analysis.maintenance.walk import main; main()"
# Without what is installed beside it Python starts in a tenth of the time; only object stores need that.
_BARE = (sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({_PROJECT!r}); {_RUN}")
_WHOLE = (sys.executable, "-c", _RUN)


@dataclass(frozen=True)
class Found:
    """What a look at a root has found.

    Attributes:
        device: the number of its device; None for an object store.
        marker: the id in its marker; None where there is no marker.
        present: the numbers of applications that have a directory, by model.
        odd: by model and number, what stands there instead of a directory, or why it cannot be looked at.
        absent: models that have no folder.
        unknown: models whose folder nobody could look at, and why.
    """

    device: int | None = None
    marker: str | None = None
    present: Mapping[str, frozenset[int]] = field(default_factory=dict)
    odd: Mapping[tuple[str, int], str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def applications(self) -> int:
        """How many applications have a directory, or something instead of one."""
        return sum(map(len, self.present.values())) + len(self.odd)


@dataclass(frozen=True)
class Known:
    """What was seen of the same root before: the id in its marker, and its device."""

    marker: str
    device: int | None


def look(
    location: str,
    slugs: Collection[str],
    *,
    seconds: float = LOOK_SECONDS,
    write_marker: str | None = None,
    command: Sequence[str] | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> Found:
    """Walk over a root once.

    Args:
        location: a folder, or an fsspec URL.
        slugs: the models to look for.
        seconds: the deadline; a look that hangs is left behind.
        write_marker: the id of a marker to write first.
        command: answers a request on its standard input, as `walk.main` does.
        process: what `started` has started for this location, and nobody has asked yet.

    Raises:
        Unavailable: the root could not be looked at.
    """
    request: dict[str, Any] = {"location": location, "slugs": sorted(slugs)}
    if write_marker is not None:
        request["write_marker"] = marker_text(write_marker)
    answer = _asked(location, marshal.dumps(request), seconds, process or _begun(command or _command(location)))
    if "error" in answer:
        raise Unavailable(
            f"GENERATED_APPS_DIR {location} could not be looked at: {answer['error']}. No application was marked or"
            " deleted; see that it is mounted and readable by this user."
        )
    return Found(
        device=answer["device"],
        marker=_marker_id(location, answer["marker"]),
        present={slug: frozenset(numbers) for slug, numbers in answer["present"].items()},
        odd={
            (slug, int(number)): reason for slug, numbers in answer["odd"].items() for number, reason in numbers.items()
        },
        absent=frozenset(answer["absent"]),
        unknown=answer["unknown"],
    )


def _command(location: str) -> Sequence[str]:
    return _WHOLE if "://" in location and not location.startswith("file://") else _BARE


@contextmanager
def started(location: str) -> Generator[subprocess.Popen[bytes], None, None]:
    """A process that will look at a location once; it starts while other things are done, and ends in any case."""
    process = _begun(_command(location))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            # One that was never asked dies at once, one that hangs in a file system does not.
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _begun(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this interpreter
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _asked(location: str, request: bytes, seconds: float, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    try:
        told, complained = process.communicate(request, timeout=seconds)
    except subprocess.TimeoutExpired:
        # Not waited for: a process that hangs in a network file system does not even die.
        process.kill()
        raise Unavailable(
            f"GENERATED_APPS_DIR {location} did not answer within {seconds:g} s: a network file system that hangs? No"
            " application was marked or deleted."
        ) from None
    except BaseException:
        process.kill()
        raise
    try:
        return marshal.loads(told)  # noqa: S302 - written by the process started above
    except (EOFError, ValueError, TypeError):
        lines = complained.decode(errors="replace").strip().splitlines()
        last = (lines or [f"exit status {process.returncode}"])[-1]
        return {"error": last}


def marker_text(marker: str) -> str:
    """What a marker holds."""
    note = "ops_pipeline deletes nothing below a folder that lacks this file: leave it here."
    return json.dumps({"id": marker, "note": note}) + "\n"


def _marker_id(location: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(json.loads(text)["id"])
    except (ValueError, TypeError, KeyError):
        raise Unavailable(
            f"The marker of {location} cannot be read: restore it, or remove it and adopt_root."
        ) from None


def new_marker() -> str:
    """The id of a marker for a root that has none."""
    return uuid.uuid4().hex


def judge(location: str, found: Found, known: Known | None, applications: int, *, adopt: bool = False) -> bool:
    """Decide whether a root is the one that it should be.

    Args:
        location: of the root.
        found: what a look has found.
        known: what was seen of it before; None on first use.
        applications: how many the database has.
        adopt: a person says that it is the right one, whatever was seen before.

    Returns:
        Whether what was found is to be remembered as the root from now on (first use, or adopted).

    Raises:
        Unavailable: it looks like another one, or like none.
    """
    advice = "No application was marked or deleted. If it is right all the same, launch once with adopt_root: true."
    if applications and not found.applications:
        raise Unavailable(
            f"GENERATED_APPS_DIR {location} has none of {applications} applications: it looks like an empty mount"
            " point. No application was marked or deleted."
        )
    if known is None or adopt:
        return True
    if found.marker is None:
        raise Unavailable(f"GENERATED_APPS_DIR {location} lacks the marker it had: is it mounted? {advice}")
    if found.marker != known.marker:
        raise Unavailable(f"GENERATED_APPS_DIR {location} has the marker of another root. {advice}")
    if found.device != known.device:
        raise Unavailable(
            f"GENERATED_APPS_DIR {location} is on device {found.device}, and was on {known.device} before: is the"
            f" right one mounted? {advice}"
        )
    return False
