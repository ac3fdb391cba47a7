"""Figures and health over HTTP, as Prometheus and monitors ask for them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, Engine, event, insert, text

from ops_pipeline.analysis.maintenance.tables import maintenance_passes
from ops_pipeline.analysis.measures import measure_analysis
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.hypervisor.measures import measure_hypervisors
from ops_pipeline.hypervisor.tables import machines
from ops_pipeline.measuring import Measure
from ops_pipeline.operations.exposition import MeasureCollector, application, look_ahead, server_for
from ops_pipeline.operations.measures import JobMeasurer, OutcomeTotals, totals_query
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.services.measures import measure_services
from ops_pipeline.services.tables import service_states
from ops_pipeline.usage.measures import usage_measurer
from ops_pipeline.usage.progress import CatchUpPolicy
from ops_pipeline_tests.usage.calls import at, call, run, write

POLICY = CatchUpPolicy(at("2026-03-01 00:00"), None, 744, 3)
ALL = {
    "jobs": JobMeasurer(["flush_firewall"]),
    "usage": usage_measurer(POLICY),
    "services": measure_services,
    "hypervisor": measure_hypervisors,
    "analysis": measure_analysis,
}


def well() -> tuple[bool, dict[str, Any]]:
    return True, {"ok": True}


@contextmanager
def serving(engine: Engine, measurers: Any = None, ready: Any = well, health: Any = well) -> Iterator[str]:
    served = application(MeasureCollector(engine, measurers or ALL), ready, health)
    server = server_for("127.0.0.1", 0, served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(url: str) -> tuple[int, str]:
    answer = httpx.get(url)
    return answer.status_code, answer.text


def samples(page: str) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def outcome(job: str, minutes_ago: float, now: datetime, **values: Any) -> dict[str, Any]:
    ended = now - timedelta(minutes=minutes_ago)
    row = {"job": job, "run_id": "r", "started_at": ended - timedelta(seconds=3), "finished_at": ended, "details": {}}
    return row | {"status": "success", "scanned": 10, "changed": 2, "skipped": 0, "failed": 0} | values


def record(engine: Engine, *rows: dict[str, Any]) -> None:
    with writing(engine) as connection:
        connection.execute(insert(job_outcomes), list(rows))


def clock(engine: Engine) -> datetime:
    with reading(engine) as connection:
        return database_now(connection)


def test_a_scrape_tells_of_jobs_hours_calls_models_and_services(engine: Engine) -> None:
    now = clock(engine)
    late = {"backlog_seconds": {"old_tasks": 60}}
    record(engine, outcome("flush_firewall", 60, now), outcome("flush_firewall", 1, now, status="failed", details=late))
    write(engine, call(at("2026-03-01 01:30")), call(at("2026-03-01 02:30"), status="processing"))
    run(engine, at("2026-03-01 01:00"))
    with writing(engine) as connection:
        row = {"name": "redis", "host": "local", "state": "down", "flapping": False, "given_up": False, "restarts": []}
        connection.execute(insert(service_states), [row])
    with serving(engine) as url:
        status, page = get(f"{url}/metrics")
    found = samples(page)
    assert status == 200
    assert found["ops_pipeline_job_outcomes_total", "flush_firewall", "success"] == 1
    assert found["ops_pipeline_job_outcomes_total", "flush_firewall", "failed"] == 1
    assert found["ops_pipeline_job_objects_total", "flush_firewall", "scanned"] == 20
    last_run = found["ops_pipeline_job_last_run_timestamp_seconds", "flush_firewall"]
    last_success = found["ops_pipeline_job_last_success_timestamp_seconds", "flush_firewall"]
    assert last_run - last_success == pytest.approx(59 * 60)
    assert found["ops_pipeline_job_last_duration_seconds", "flush_firewall"] == pytest.approx(3)
    assert found["ops_pipeline_job_backlog_seconds", "flush_firewall", "old_tasks"] == 60
    assert found["ops_pipeline_usage_partitions", "missing"] > 100
    assert found["ops_pipeline_usage_newest_hour_timestamp_seconds",] == at("2026-03-01 01:00").timestamp()
    assert found["ops_pipeline_usage_backlog_seconds",] > 3600
    assert found["ops_pipeline_model_calls_processing",] == 1
    assert found["ops_pipeline_services", "down"] == 1
    assert found["ops_pipeline_up", "usage"] == 1


def test_a_scrape_tells_of_machines_and_of_the_queue(engine: Engine) -> None:
    now = clock(engine)
    with writing(engine) as connection:
        connection.execute(insert(machines), [{"id": str(number), "status": "running"} for number in range(3)])
        waiting = {"service": "static-analyzer", "target": "m/app1", "created_at": now - timedelta(minutes=5)}
        tasks = [waiting | {"id": "1", "status": "pending"}, waiting | {"id": "2", "status": "running"}]
        tasks += [waiting | {"id": "3", "status": "completed"}, waiting | {"id": "4", "status": "PENDING"}]
        connection.execute(insert(analysis_tasks), tasks)
        done = {"run_id": "r", "name": "old_tasks", "started_at": now, "finished_at": now, "status": "success"}
        done |= dict.fromkeys(("scanned", "changed", "skipped", "failed", "left_over"), 0) | {"details": {}}
        passes = [done | {"backlog_seconds": 90.0}, done | {"backlog_seconds": 60.0}]
        connection.execute(insert(maintenance_passes), passes)
    with serving(engine) as url:
        _, page = get(f"{url}/metrics")
    found = samples(page)
    assert found["ops_pipeline_machines", "running"] == 3
    assert found["ops_pipeline_machines_observed", "unknown"] == 3
    assert found["ops_pipeline_analysis_tasks", "static-analyzer", "pending"] == 1
    assert found["ops_pipeline_analysis_tasks", "static-analyzer", "running"] == 1
    assert found["ops_pipeline_analysis_tasks", "static-analyzer", "unknown"] == 1
    assert found["ops_pipeline_maintenance_backlog_seconds", "old_tasks"] == 60
    assert not any("completed" in key for key in found)
    assert found["ops_pipeline_analysis_oldest_task_seconds",] == pytest.approx(300, abs=30)
    assert found["ops_pipeline_up", "analysis"] == found["ops_pipeline_up", "hypervisor"] == 1


def test_a_scrape_tells_what_the_last_sweep_of_checkpoints_found(sqlite_engine: Engine) -> None:
    found = {"matched_keys": 900, "unknown_keys": 0, "deleted_count": 300, "threads": 40, "threads_removed": 12}
    measurer = {"jobs": JobMeasurer(["cleanup_checkpoints"])}
    with serving(sqlite_engine, measurer) as url:
        _, page = get(f"{url}/metrics")
        assert not [key for key in samples(page) if "checkpoint" in key[0]]
        record(sqlite_engine, outcome("cleanup_checkpoints", 1, clock(sqlite_engine), details=found))
        _, page = get(f"{url}/metrics")
    figures = {key[0] + "/" + key[1]: value for key, value in samples(page).items() if "checkpoint" in key[0]}
    assert figures == {
        "ops_pipeline_checkpoint_keys/of_checkpoints": 900,
        "ops_pipeline_checkpoint_keys/of_no_known_layout": 0,
        "ops_pipeline_checkpoint_keys/deleted": 300,
        "ops_pipeline_checkpoint_threads/found": 40,
        "ops_pipeline_checkpoint_threads/removed": 12,
    }


def test_prometheus_own_linter_finds_nothing_to_say(sqlite_engine: Engine) -> None:
    record(sqlite_engine, outcome("flush_firewall", 1, clock(sqlite_engine)))
    with serving(sqlite_engine) as url:
        _, page = get(f"{url}/metrics")
    result = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def test_a_domain_that_cannot_be_read_is_told_and_leaves_the_others_alone(engine: Engine) -> None:
    """One missing table made the whole page an error, and every alert on it silent."""
    with writing(engine) as connection:
        connection.execute(text("DROP TABLE service_states"))
    with serving(engine) as url:
        status, page = get(f"{url}/metrics")
    found = samples(page)
    assert status == 200
    assert found["ops_pipeline_up", "services"] == 0
    assert found["ops_pipeline_up", "usage"] == 1


def test_a_database_that_is_away_is_a_figure_too(caplog: pytest.LogCaptureFixture) -> None:
    """It was told of in six lines at each scrape, 24 a minute."""
    away = connect("postgresql+psycopg://u:secret@127.0.0.1:1/x?connect_timeout=1")
    with serving(away) as url:
        for _ in range(2):
            status, page = get(f"{url}/metrics")
    assert status == 200 and samples(page)["ops_pipeline_up", "jobs"] == 0
    assert "secret" not in page + caplog.text
    assert caplog.text.count("The figures of jobs cannot be read") == 1


def test_totals_are_the_same_however_often_they_are_asked_for(engine: Engine) -> None:
    now = clock(engine)
    record(engine, *(outcome("a", minutes, now) for minutes in (1, 5, 9, 11, 50, 5000)))
    totals = OutcomeTotals()
    for later in (0, 1, 3, 20):
        with reading(engine) as connection:
            found = totals.read(connection, now + timedelta(minutes=later))
        assert found["outcome", "a", "success"] == 6, later
    record(engine, outcome("a", 2, now, status="failed"))
    with reading(engine) as connection:
        assert OutcomeTotals().read(connection, now)["outcome", "a", "failed"] == 1


def test_a_job_whose_first_outcome_comes_after_the_first_scrape_is_counted(engine: Engine) -> None:
    now = clock(engine)
    totals = OutcomeTotals(["b"])
    record(engine, outcome("a", 5000, now))
    with reading(engine) as connection:
        totals.read(connection, now)
    record(engine, outcome("b", 1, now))
    with reading(engine) as connection:
        found = totals.read(connection, now)
    assert (found["outcome", "a", "success"], found["outcome", "b", "success"]) == (1, 1)


def test_two_scrapes_at_the_same_moment_count_nothing_twice(engine: Engine) -> None:
    """Two servers of Prometheus added the whole history twice, for as long as the process lived."""
    now = clock(engine)
    record(engine, *(outcome("a", minutes, now) for minutes in (1, 50, 5000)))
    totals, both = OutcomeTotals(), threading.Barrier(2)

    def meet(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "job_outcomes" in statement:
            # Where both may count at once they do; otherwise the first does not wait for ever.
            with suppress(threading.BrokenBarrierError):
                both.wait(0.3)

    def read(seconds_ago: int) -> Counter[tuple[str, ...]]:
        with reading(engine) as connection:
            return totals.read(connection, now - timedelta(seconds=seconds_ago))

    event.listen(engine, "before_cursor_execute", meet)
    with ThreadPoolExecutor(2) as threads:
        found = [*threads.map(read, (0, 30)), *threads.map(read, (0, 0))]
    event.remove(engine, "before_cursor_execute", meet)
    assert [one["outcome", "a", "success"] for one in found] == [3, 3, 3, 3]


def test_the_history_is_counted_before_anybody_scrapes(engine: Engine) -> None:
    """The first scrape of a million outcomes took a third of a second, the others a tenth of that."""
    now = clock(engine)
    record(engine, outcome("flush_firewall", 5000, now))
    collector = MeasureCollector(engine, {"jobs": JobMeasurer(["flush_firewall"])})
    look_ahead(collector).join()
    sent: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "sum(job_outcomes.scanned)" in statement:
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    families = {one.name: one for one in collector.collect()}
    event.remove(engine, "before_cursor_execute", note)
    assert families["ops_pipeline_job_outcomes"].samples[0].value == 1
    # Neither of the two counts reads from the beginning.
    assert len(sent) == 2 and all("finished_at > " in one for one in sent)


def test_a_scrape_finds_the_last_minutes_by_an_index(engine: Engine) -> None:
    """A million rows were read twice at each scrape, for what ended in the last ten minutes."""
    query = totals_query(["a", "b"], clock(engine) - timedelta(minutes=10), None)
    words = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    with reading(engine) as connection:
        explain = "EXPLAIN QUERY PLAN "
        if engine.dialect.name == "postgresql":
            # A table without rows is read in one go, whatever its indexes.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            explain = "EXPLAIN "
        plan = "\n".join(str(row) for row in connection.execute(text(explain + words)))
    assert "job_outcomes_job" in plan
    assert "finished_at>" in plan if engine.dialect.name == "sqlite" else "finished_at >" in plan.partition("Cond")[2]


def test_what_is_not_well_answers_503_and_says_why(sqlite_engine: Engine) -> None:
    def sick() -> tuple[bool, dict[str, Any]]:
        return False, {"database": "away"}

    with serving(sqlite_engine, ready=sick, health=sick) as url:
        assert get(f"{url}/livez") == (200, '{"status": "alive"}\n')
        assert get(f"{url}/readyz") == (503, '{"database": "away"}\n')
        assert get(f"{url}/health")[0] == 503
        status, page = get(f"{url}/elsewhere")
    assert status == 404 and "/metrics" in json.loads(page)["pages"]


def test_labels_of_a_measure_are_escaped(sqlite_engine: Engine) -> None:
    def odd(connection: Connection, now: datetime) -> Sequence[Measure]:
        return [Measure("ops_pipeline_odd", "Odd.", ("name",), {('a"b\\c\nd',): 1.0})]

    with serving(sqlite_engine, {"odd": odd}) as url:
        _, page = get(f"{url}/metrics")
    assert samples(page)["ops_pipeline_odd", 'a"b\\c\nd'] == 1
