"""Asking services how they are, all at once, for tasks that failed because of them.

What belongs here: where services are, and the health checks. What does not: what follows from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, select

from ops_pipeline.analysis.breakers import Health
from ops_pipeline.analysis.client import Patience, check_health
from ops_pipeline.analysis.recovery.transient import Probe
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.engine import reading

PATIENCE = Patience(opening=5.0, closing=1.0, health=5.0, connect_waits=())
"""Whoever is not there now is asked again five minutes later."""


def probe_services(engine: Engine, configured: Mapping[str, str]) -> Probe:
    """Make a probe that knows where services are: from `analyzer_services`, else from ANALYZER_URLS."""

    def probe(services: Sequence[str]) -> Mapping[str, Health]:
        known = analyzer_services.c
        with reading(engine) as connection:
            rows = connection.execute(select(known.service, known.url).where(known.url != ""))
            urls = {**configured, **{row.service: row.url for row in rows}}
        return asyncio.run(_ask({name: urls[name] for name in services if name in urls}))

    return probe


async def _ask(urls: Mapping[str, str]) -> dict[str, Health]:
    answers = await asyncio.gather(*(check_health(url, PATIENCE) for url in urls.values()))
    return {
        name: Health(answer.healthy, answer.reason, tools=answer.tools)
        for name, answer in zip(urls, answers, strict=True)
    }
