"""The protocol of analyzer services, as pure rules: requests, and what every frame and every ending means.

Frames are JSON objects as WebSocket text; one analysis per connection. What belongs here: building requests, and
turning frames and endings into typed outcomes. What does not: sockets (`client`), and what follows for a task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

LONGEST_FRAME = 100 * 1024 * 1024
MOST_NOISE = 1_000
"""Frames of a service that are no answer; beyond so many it is not worth waiting for its deadline."""
LONGEST_TEXT = 2_000
HEALTH_CHECK = {"type": "health_check"}


class Ending(StrEnum):
    """How the conversation about one task ended."""

    COMPLETED = "completed"
    PARTIAL = "partial_success"
    FAILED = "analysis_failed"
    REFUSED = "service_error"
    BAD_REPLY = "bad_reply"
    JUNK = "junk"
    TOO_LARGE = "frame_too_large"
    TIMEOUT = "timeout"
    CLOSED_EARLY = "closed_early"
    UNREACHABLE = "unreachable"
    UNHEALTHY = "unhealthy"
    NO_TOOL = "no_valid_tool"

    @property
    def stored(self) -> bool:
        """Whether there is a result worth storing."""
        return self in {Ending.COMPLETED, Ending.PARTIAL}

    @property
    def unavailable(self) -> bool:
        """Whether the service was not there, which says nothing about the task and costs it no attempt."""
        return self in {Ending.UNREACHABLE, Ending.UNHEALTHY}

    @property
    def transient(self) -> bool:
        """Whether another attempt may well end otherwise; an attempt is spent, unless the service was not there."""
        return self.unavailable or self is Ending.CLOSED_EARLY


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        ending: how it ended.
        message: why, in the operator's words; empty when it completed.
        reply: the whole reply, when there was one.
        size: of the reply, in characters.
        seconds: from the request to the end.
    """

    ending: Ending
    message: str = ""
    reply: Mapping[str, Any] | None = None
    size: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far a service says it is; `percent` from 0 to 100 where it tells."""

    stage: str
    message: str
    percent: int | None = None


@dataclass(frozen=True)
class Noise:
    """A frame that says nothing about this request; `junk` when it is no frame of the protocol at all."""

    reason: str
    junk: bool = False


Frame = Progress | Noise | Outcome


@dataclass(frozen=True)
class Dialect:
    """What a service calls its request and its replies."""

    request: str
    replies: tuple[str, ...]


DIALECTS: Mapping[str, Dialect] = {
    "static-analyzer": Dialect("static_analyze", ("static_analysis_result",)),
    "dynamic-analyzer": Dialect("dynamic_analyze", ("dynamic_analysis_result",)),
    "performance-tester": Dialect("performance_test", ("performance_analysis_result", "performance_test_result")),
    "ai-analyzer": Dialect("ai_analyze", ("ai_analysis_result",)),
    "generation": Dialect("generate", ("generation_result",)),
}

_OK = {"success", "completed", "complete", "ok", "no_issues", "passed"}
_PARTIAL = {"partial_success", "partial", "completed_with_errors"}
_FAILED = {"error", "failed", "failure", "timeout", "cancelled", "rejected"}
_PROGRESS = {"progress_update", "progress", "status_update"}
_NO_ANSWER = {"pong", "health_response", "connection_ack", "heartbeat"}


def dialect_of(service: str) -> Dialect:
    """The words of a service: a known one's own, else made of its name."""
    word = service.replace("-", "_")
    return DIALECTS.get(service, Dialect(word, (f"{word}_result",)))


@dataclass(frozen=True)
class Request:
    """One analysis that is asked for.

    Attributes:
        id: comes back in the reply of services that echo it, and as `correlation_id` of progress.
        service: by its name.
        model_slug: of the application.
        app_number: of the application; 0 is a number like any other, None for one that is yet to be made.
        tools: which ones; empty for all that the service has.
        config: per tool, besides `template_slug` and `ports`.
        target_urls: where the application listens.
    """

    id: str
    service: str
    model_slug: str
    app_number: int | None
    tools: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    target_urls: Sequence[str] = ()

    def frame(self, now: datetime) -> str:
        """The text frame that asks for it."""
        asked: dict[str, Any] = {
            "type": dialect_of(self.service).request,
            "id": self.id,
            "model_slug": self.model_slug,
            "tools": list(self.tools),
            "timestamp": now.isoformat(),
        }
        if self.app_number is not None:
            asked["app_number"] = self.app_number
        if self.config:
            asked["config"] = dict(self.config)
        if self.target_urls:
            asked["target_urls"] = list(self.target_urls)
        return json.dumps(asked)


def request_id(service: str, target: str, task_id: str, attempt: int) -> str:
    """An id that no other attempt of any task shares, so that a late answer to an earlier one is told apart."""
    return f"{target.replace('/', '_')}_{service}_{task_id}_{attempt}"


def classify(frame: str | bytes, request: Request) -> Frame:
    """What a frame says about a request."""
    if isinstance(frame, bytes):
        return Noise(f"a binary frame of {len(frame)} bytes", junk=True)
    found = parsed(frame)
    if found is None:
        return Noise(f"a frame that is no JSON object: {shortened(frame, 80)!r}", junk=True)
    return classify_object(found, request, len(frame))


def parsed(frame: str) -> dict[str, Any] | None:
    """The object in a text frame; None when there is none."""
    try:
        found = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def classify_object(found: Mapping[str, Any], request: Request, size: int) -> Frame:
    """What an object says about a request; one that names another request says nothing."""
    kind = str(found.get("type", "")).lower()
    named = named_request(found)
    if named and named != request.id:
        return Noise(f"{kind or 'a frame'} for another request, {shortened(named, 80)}")
    if kind in _PROGRESS:
        return progress_of(found)
    if kind in _NO_ANSWER:
        return Noise(kind)
    if kind == "error" or kind.endswith("_error"):
        return Outcome(Ending.REFUSED, error_text(found) or "the service gave no reason", found, size)
    if kind in dialect_of(request.service).replies:
        return judged(found, size)
    return Noise(f"a frame of type {shortened(kind, 80) or 'none'!r}")


def named_request(found: Mapping[str, Any]) -> str:
    """The request that a frame names; empty when it names none, as most services do."""
    data = found.get("data")
    inner = data.get("analysis_id") if isinstance(data, Mapping) else None
    named = found.get("id") or found.get("request_id") or found.get("correlation_id") or inner
    return str(named) if named else ""


def progress_of(found: Mapping[str, Any]) -> Progress:
    """The progress in a frame; services put it into the frame or into its `data`."""
    data = found.get("data")
    details = {**(data if isinstance(data, Mapping) else {}), **found}
    return Progress(
        shortened(str(details.get("stage") or details.get("status") or ""), 100),
        shortened(str(details.get("message") or ""), 500),
        _percent(next((details[name] for name in ("progress", "percent") if details.get(name) is not None), None)),
    )


def _percent(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    # Some services count from 0 to 1.
    return round(value * 100 if isinstance(value, float) and value <= 1 else value)


def judged(reply: Mapping[str, Any], size: int) -> Outcome:
    """The outcome that a reply tells; the worse of its outer and inner status, since the outer one is often fixed."""
    analysis = reply.get("analysis")
    if not isinstance(analysis, Mapping):
        if _ending(reply) is Ending.FAILED:
            return Outcome(Ending.FAILED, error_text(reply) or "the service gave no reason", reply, size)
        return Outcome(Ending.BAD_REPLY, "the reply holds no analysis", reply, size)
    for holder, name in ((analysis, "analysis"), (reply, "reply")):
        unknown = _unknown_status(holder)
        if unknown:
            return Outcome(Ending.BAD_REPLY, f"the status {unknown!r} of the {name} is unknown", reply, size)
    endings = (_ending(analysis), _ending(reply))
    if Ending.FAILED in endings:
        reason = error_text(analysis) or error_text(reply) or "the service gave no reason"
        return Outcome(Ending.FAILED, reason, reply, size)
    if Ending.PARTIAL in endings:
        reason = error_text(analysis) or error_text(reply) or "the service finished in part"
        return Outcome(Ending.PARTIAL, reason, reply, size)
    return Outcome(Ending.COMPLETED, "", reply, size)


def _status(holder: Mapping[str, Any]) -> str:
    status = holder.get("status")
    return status.strip().lower() if isinstance(status, str) else ""


def _unknown_status(holder: Mapping[str, Any]) -> str:
    status = _status(holder)
    return "" if not status or status in _OK | _PARTIAL | _FAILED else shortened(status, 80)


def _ending(holder: Mapping[str, Any]) -> Ending:
    status = _status(holder)
    if status in _PARTIAL:
        return Ending.PARTIAL
    # Without a status an error is one all the same; with one that is fine it is a remark.
    if status in _FAILED or (not status and holder.get("error")):
        return Ending.FAILED
    return Ending.COMPLETED


def error_text(holder: Mapping[str, Any]) -> str:
    """The reason in a frame, under whichever key the service keeps it."""
    for name in ("error", "message", "error_message", "detail", "reason"):
        value = holder.get(name)
        if isinstance(value, Mapping):
            value = value.get("message") or json.dumps(value)
        if value and not isinstance(value, bool):
            return shortened(str(value), LONGEST_TEXT)
    return ""


def health_of(frame: str | bytes) -> tuple[bool, str] | None:
    """Whether a service says that it is healthy, and its reason; None for a frame that answers something else."""
    found = parsed(frame) if isinstance(frame, str) else None
    if found is None:
        return False, "it answers with something that is no JSON object"
    if found.get("type") == "error":
        return False, error_text(found) or "it answers with an error"
    if found.get("type") != "health_response":
        return None
    status = _status(found)
    return status == "healthy", "" if status == "healthy" else f"it says that it is {status or 'not healthy'!r}"


def shortened(text: str, length: int) -> str:
    """A text on one line, cut at a length."""
    line = " ".join(storable(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def storable(text: str) -> str:
    """A text as every database takes it: JSON may hold NUL and halves of characters, PostgreSQL may not."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
