"""What a worker knows of services: where they are, and how they are; each is asked once, however many tasks wait.

What belongs here: shared health checks. What does not: breakers, which `claim` looks at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from ops_pipeline.analysis.client import Health, Patience, check_health

ILL_SECONDS = 5.0
"""For so long a bad health check counts: tasks that come meanwhile wait for the service without asking it again."""


@dataclass
class _Known:
    health: Health
    until: float


@dataclass
class Services:
    """The services of one worker.

    Attributes:
        patience: with health checks.
        well_seconds: for how long a good one counts.
        urls: by name; replaced whenever they are read anew.
        read: reads them anew, for a service that has none.
        checked: hears of every health check, by name.
    """

    patience: Patience
    well_seconds: float
    urls: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[], Awaitable[None]] | None = None
    checked: Callable[[str, Health], None] = lambda _name, _health: None
    _known: dict[str, _Known] = field(default_factory=dict)
    _asking: dict[str, asyncio.Task[Health]] = field(default_factory=dict)

    async def health(self, service: str) -> Health:
        """How a service is; asks it unless that is known, together with whoever else wants to know."""
        known = self._known.get(service)
        if known is not None and known.until > time.monotonic():
            return known.health
        if service not in self._asking:
            self._asking[service] = asyncio.create_task(self._ask(service))
        # Shielded: one task that is cancelled must not take the answer from the others.
        return await asyncio.shield(self._asking[service])

    async def _ask(self, service: str) -> Health:
        try:
            if not self.urls.get(service) and self.read is not None:
                await self.read()
            url = self.urls.get(service)
            if url:
                health = await check_health(url, self.patience)
            else:
                reason = f"no URL is known for {service}: set it in analyzer_services, or in ANALYZER_URLS"
                health = Health(healthy=False, reason=reason)
            seconds = self.well_seconds if health.healthy else ILL_SECONDS
            self._known[service] = _Known(health, time.monotonic() + seconds)
            self.checked(service, health)
            return health
        finally:
            del self._asking[service]

    def gone(self, service: str) -> None:
        """Forget that a service was well: a task has just missed it."""
        self._known.pop(service, None)

    async def close(self) -> None:
        """Ask no more."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
