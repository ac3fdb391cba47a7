"""Serving figures and health over HTTP: OpenMetrics for Prometheus, JSON for monitors.

What belongs here: the HTTP server. What the figures are, the domains know; what is healthy, `health` does.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.measuring import Measure, Measurer

log = logging.getLogger(__name__)
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
Answer = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether something is well, and what to say of it."""


class MeasureCollector(Collector):
    """Asks the domains at each scrape; one that fails is counted and leaves the others alone."""

    def __init__(self, engine: Engine, measurers: Mapping[str, Measurer]) -> None:
        """Remember whom to ask, by domain."""
        self._engine = engine
        self._measurers = measurers
        self._told: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """The figures of every domain, and whether each could be asked."""
        answers: dict[str, float] = {}
        for domain, measurer in self._measurers.items():
            try:
                with reading(self._engine) as connection:
                    measures = measurer(connection, database_now(connection))
            except (DatabaseProblem, SQLAlchemyError) as error:
                self._tell(domain, str(error).partition("\n")[0])
                answers[domain] = 0
                continue
            self._tell(domain, "")
            answers[domain] = 1
            yield from (_family(measure) for measure in measures)
        help_ = "1 when the figures of a domain could be read at this scrape."
        yield _family(Measure("ops_pipeline_up", help_, ("domain",), {(name,): up for name, up in answers.items()}))

    def _tell(self, domain: str, problem: str) -> None:
        """Log what changed: a database that is away for an hour is not told of at each scrape."""
        if self._told.get(domain, "") == problem:
            return
        self._told[domain] = problem
        if problem:
            log.warning("The figures of %s cannot be read: %s", domain, problem)
        else:
            log.info("The figures of %s can be read again.", domain)


def look_ahead(collector: Collector) -> threading.Thread:
    """Ask everything once, beside a server that answers already.

    The first look counts the whole history of outcomes, a third of a second for a million; none after it does, and the
    first scrape should not wait for it. `/livez` must not either: the database may be away.
    """
    thread = threading.Thread(target=lambda: list(collector.collect()), name="look_ahead", daemon=True)
    thread.start()
    return thread


def _family(measure: Measure) -> Metric:
    make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    family = make(measure.name, measure.help, labels=measure.labels)
    for labels, value in sorted(measure.values.items()):
        family.add_metric(labels, value)
    return family


def application(collector: Collector, ready: Answer, health: Answer) -> Application:
    """The WSGI application: `/metrics`, `/livez`, `/readyz` and `/health`.

    `/livez` depends on nothing but this process; `/readyz` on the database and the daemon; `/health` tells of every
    job. All but the first answer 503 when something is not well.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    metrics: Any = make_wsgi_app(registry)
    pages: dict[str, Answer] = {"/livez": lambda: (True, {"status": "alive"}), "/readyz": ready, "/health": health}

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        page = pages.get(path)
        if page is None:
            return _reply(start_response, "404 Not Found", {"pages": ["/metrics", *pages]})
        well, content = page()
        return _reply(start_response, "200 OK" if well else "503 Service Unavailable", content)

    return answer


def _reply(start_response: Any, status: str, content: Mapping[str, Any]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(content, default=str).encode() + b"\n"]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes every few seconds are not worth a line each."""


def server_for(host: str, port: int, served: Application) -> WSGIServer:
    """A server that answers each request in a thread of its own, so that a slow page holds up no probe of liveness.

    Raises:
        OSError: the address cannot be used.
    """
    return make_server(host, port, served, ThreadingWSGIServer, handler_class=_Quiet)
