"""Progress of tasks: the last that was heard of each, written down once a second at most; and the gateway for it.

What belongs here: collecting. Progress is told as well as may be: nothing fails for want of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import websockets
from websockets.asyncio.client import connect

from ops_pipeline.analysis.protocol import Progress, named_request, parsed, progress_of
from ops_pipeline.analysis.states import Task

LONGEST_PAUSE = 30.0
LARGEST_FRAME = 2**20
SUBSCRIPTION = {"type": "status_request", "id": "ops_pipeline", "data": {"subscribe": "events"}}


@dataclass
class Heard:
    """What was heard since it was last written down."""

    _last: dict[str, tuple[Task, Progress]] = field(default_factory=dict)

    def of(self, task: Task) -> Callable[[Progress], None]:
        """Whoever tells of the progress of a task tells this."""

        def tell(progress: Progress) -> None:
            self._last[task.id] = (task, progress)

        return tell

    def forget(self, task_id: str) -> None:
        """Leave out a task that is over."""
        self._last.pop(task_id, None)

    def take(self) -> list[tuple[Task, Progress]]:
        """What was heard, the last of each task, and begin anew."""
        taken, self._last = list(self._last.values()), {}
        return taken


async def hear_gateway(url: str, heard: Callable[[str, Progress], None]) -> None:
    """Subscribe to a progress gateway until cancelled; `heard` gets the id of a request and its progress."""
    pause = 1.0
    while True:
        try:
            async with connect(
                url, ping_interval=None, compression=None, proxy=None, max_size=LARGEST_FRAME
            ) as gateway:
                await gateway.send(json.dumps(SUBSCRIPTION))
                pause = 1.0
                async for frame in gateway:
                    found = parsed(frame) if isinstance(frame, str) else None
                    if found is not None and found.get("type") in {"progress_update", "status_update"}:
                        heard(named_by_gateway(found), progress_of(found))
        except (OSError, ValueError, websockets.WebSocketException):
            pause = min(pause * 2, LONGEST_PAUSE)
        await asyncio.sleep(pause)


def named_by_gateway(found: dict[str, object]) -> str:
    """The request that a frame of a gateway tells of; its `id` is that of the frame itself."""
    return str(found.get("correlation_id") or "") or named_request({"data": found.get("data")})
