"""One attempt of one task: is its service well, what does it say, and what is stored of that.

What belongs here: the sequence, and which end of the conversation means what for the task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ops_pipeline.analysis.client import Health, analyze
from ops_pipeline.analysis.findings import findings_of
from ops_pipeline.analysis.gate import Slot
from ops_pipeline.analysis.protocol import Ending, Outcome, Progress, Request
from ops_pipeline.analysis.results import Record, stage
from ops_pipeline.analysis.states import (
    PERMANENT,
    TIMEOUT,
    TRANSIENT,
    Result,
    Task,
    failed,
    succeeded,
    unavailable,
)
from ops_pipeline.analysis.storing import Done, summary_of
from ops_pipeline.analysis.targets import Target
from ops_pipeline.analysis.worker.plan import WorkerPlan
from ops_pipeline.analysis.worker.requests import TaskRefused, request_of
from ops_pipeline.analysis.worker.services import Services


@dataclass(frozen=True)
class Setting:
    """What all attempts of a worker share."""

    plan: WorkerPlan
    services: Services


@dataclass(frozen=True)
class Asked:
    """An attempt under way.

    Attributes:
        task: as it was claimed.
        began: when it was claimed, by the monotonic clock; its time runs from there.
        slot: for a large reply.
        told: hears of progress.
        settles: is called when the answer is there: from then on it is only stored.
    """

    task: Task
    began: float
    slot: Slot
    told: Callable[[Progress], None]
    settles: Callable[[], None]


async def attempt(asked: Asked, setting: Setting) -> Done:
    """Make an attempt; every way of going wrong is a result too."""
    task = asked.task
    try:
        request, target = request_of(task)
    except TaskRefused as error:
        return Done(failed(task, str(error)))
    try:
        async with asyncio.timeout(_left(asked)):
            health = await setting.services.health(task.service)
    except TimeoutError:
        return Done(
            _result(task, Outcome(Ending.TIMEOUT, f"no time was left after {task.timeout.total_seconds():g} s"))
        )
    outcome = _objection(request, health)
    if outcome is None:
        url = setting.services.urls.get(task.service, "")
        outcome = await analyze(
            url,
            request,
            timeout_seconds=_left(asked),
            told=asked.told,
            patience=setting.plan.patience,
            slot=asked.slot,
            answered=asked.settles,
        )
    if outcome.ending.transient:
        setting.services.gone(task.service)
    asked.settles()
    return await asyncio.to_thread(_settle, task, target, outcome, setting.plan.results)


def _left(asked: Asked) -> float:
    return max(0.0, asked.task.timeout.total_seconds() - (time.monotonic() - asked.began))


def _objection(request: Request, health: Health) -> Outcome | None:
    """Why a service is not asked at all."""
    if not health.healthy:
        return Outcome(Ending.UNHEALTHY, health.reason)
    available = {tool.lower() for tool in health.tools}
    if request.tools and available and not available & {tool.lower() for tool in request.tools}:
        named, there = ", ".join(request.tools), ", ".join(sorted(available))
        return Outcome(Ending.NO_TOOL, f"no valid tool: {named}; {request.service} has {there}")
    return None


def _settle(task: Task, target: Target, outcome: Outcome, root: Path) -> Done:
    """What is stored of an outcome; the files of a result are written here."""
    if not outcome.ending.stored or outcome.reply is None:
        return Done(_result(task, outcome))
    analysis = outcome.reply.get("analysis")
    found = findings_of(analysis)
    summary = summary_of(task, outcome, found)
    made = analysis.get("app_number") if isinstance(analysis, dict) else None
    if target.app_number is None and isinstance(made, int) and not isinstance(made, bool) and made >= 0:
        target = replace(target, app_number=made)
        summary["application"] = f"{target.model_slug}/app{made}"
    record = Record(task, target, outcome, found, summary)
    try:
        staged = stage(root, record, datetime.now(UTC))
    except OSError as error:
        return Done(failed(task, f"its result cannot be written to {error.filename or root}: {error.strerror}"))
    files = {"folder": str(staged.place), "manifest_sha256": staged.manifest_sha256, "size_bytes": staged.size}
    result = succeeded(task, summary | {"files": files}, partly=outcome.ending is Ending.PARTIAL)
    return Done(replace(result, message=outcome.message), staged, found)


def _result(task: Task, outcome: Outcome) -> Result:
    """The result of an attempt that brought nothing to store."""
    if outcome.ending.unavailable:
        return unavailable(task, outcome.message)
    kind = TIMEOUT if outcome.ending is Ending.TIMEOUT else TRANSIENT if outcome.ending.transient else PERMANENT
    return failed(
        task, f"{outcome.ending.value}: {outcome.message}", kind, summary_of(task, outcome, findings_of(None))
    )
