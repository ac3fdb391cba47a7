"""Workers against services that speak the protocol and misbehave, on both databases."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from websockets.asyncio.server import ServerConnection

from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.results import flaws_of
from ops_pipeline.analysis.submitting import submit_task
from ops_pipeline.analysis.tables import (
    analysis_results,
    analysis_tasks,
    analysis_workers,
    analyzer_services,
    task_events,
)
from ops_pipeline.analysis.worker.life import run_worker
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline_tests.analysis.analyzers import (
    Behaviour,
    after,
    analyzer,
    answers,
    breaks_off,
    is_silent,
    replies,
    reply,
    says,
)
from ops_pipeline_tests.analysis.working import (
    STATIC,
    add_task,
    ask_to_cancel,
    change,
    due_now,
    findings_in,
    lines_of,
    plan_for,
    row_of,
    status_of,
    working,
)
from ops_pipeline_tests.servers import free_port, wait_until


def events_of(engine: Engine, task_id: str = "task_1") -> list[tuple[str, str]]:
    query = select(task_events.c.kind, task_events.c.after).where(task_events.c.task_id == task_id)
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(query.order_by(task_events.c.id))]


def test_a_task_is_done_and_stored_with_all_that_belongs_to_it(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    with analyzer() as service:
        report, lines = lines_of(engine, plan_for(tmp_path, service))
    row = row_of(engine)
    assert (row.status, row.attempt, row.error_message, row.lease_owner) == ("completed", 1, None, None)
    assert row.started_at <= row.completed_at
    summary = row.result_summary["summary"]
    assert (summary["status"], summary["total_findings"], summary["severities"]) == ("completed", 1, {"medium": 1})
    (finding,) = findings_in(engine)
    assert (finding.tool, finding.rule_id, finding.severity, finding.line_number) == ("ruff", "S105", "medium", 3)
    files = row.result_summary["files"]
    folder = tmp_path / "results" / "openai_gpt-4o" / "app0" / "task_1"
    assert files["folder"] == str(folder)
    assert flaws_of(folder, files["manifest_sha256"]) == []
    assert report.counts == {"completed": 1}
    assert lines[0] == "task_1: pending -> running (static-analyzer, openai/gpt-4o/app0, attempt 1)"
    assert lines[-1] == "task_1: running -> completed (1 finding)"
    assert events_of(engine) == [("claimed", "running"), ("ended", "completed")]


PERMANENT, TRANSIENT, PARTIAL = ("failed", "permanent"), ("failed", "transient"), ("partial_success", "")
ENDS: list[tuple[Behaviour, tuple[str, str], str]] = [
    (says({"type": "error", "message": "no such model"}), PERMANENT, "service_error: no such model"),
    (replies(analysis={"status": "error", "error": "x"}), PERMANENT, "analysis_failed: x"),
    (replies(status="partial_success", error="zap failed"), PARTIAL, "zap failed"),
    (replies(analysis=None), PERMANENT, "bad_reply: the reply holds no analysis"),
    (says("junk"), PERMANENT, "junk: closed after 1 frames of junk"),
    (breaks_off, TRANSIENT, "closed_early: the service closed before its result (the connection broke)"),
    (replies(id="another"), TRANSIENT, "closed_early: the service closed before its result"),
]


@pytest.mark.parametrize(("behaviour", "end", "message"), ENDS, ids=[message[:12] for _, _, message in ENDS])
def test_every_end_of_a_conversation_is_an_end_of_its_task(
    sqlite_engine: Engine, tmp_path: Path, behaviour: Behaviour, end: tuple[str, str], message: str
) -> None:
    add_task(sqlite_engine)
    with analyzer(behaviour) as service:
        lines_of(sqlite_engine, plan_for(tmp_path, service))
    row = row_of(sqlite_engine)
    assert ((row.status, row.error_class), row.error_message.startswith(message)) == (end, True), row
    assert row.result_summary["summary"]["ending"] == message.partition(":")[0] or end == PARTIAL
    assert len(findings_in(sqlite_engine)) == (1 if end == PARTIAL else 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "../../etc/app1"}, "its target cannot be used"),
        ({"target": "nothing"}, "its target cannot be used"),
        ({"options": {"tools": []}}, "no valid tool: options.tools is empty"),
        ({"options": {"tools": ["zap"]}}, "no_valid_tool: no valid tool: zap; static-analyzer has bandit, ruff"),
        ({"options": [1]}, "options are no JSON object"),
    ],
)
def test_a_task_that_can_never_be_done_fails_and_no_service_is_asked(
    engine: Engine, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    add_task(engine, **values)
    with analyzer() as service:
        lines_of(engine, plan_for(tmp_path, service))
        assert service.requests == []
    assert (row_of(engine).status, row_of(engine).error_class) == ("failed", "permanent")
    assert message in row_of(engine).error_message
    assert not (tmp_path / "etc").exists()


def test_a_service_that_is_down_costs_no_attempt_and_its_tasks_wait(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    plan = plan_for(tmp_path, f"ws://127.0.0.1:{free_port()}")
    waits = []
    for _ in range(3):
        lines_of(engine, plan)
        row = row_of(engine)
        assert (row.status, row.attempt) == ("pending", 0)
        with reading(engine) as connection:
            waits.append((row.next_attempt_at - database_now(connection)).total_seconds())
        due_now(engine)
        close_breakers(engine)
    assert all(wait * 0.9 <= found <= wait * 1.1 for wait, found in zip((30, 60, 120), waits, strict=True)), waits
    lines_of(engine, plan)
    row = row_of(engine)
    assert (row.status, row.error_class) == ("failed", "transient")
    assert "takes no connection" in row.error_message
    assert "after 3 waits for the service static-analyzer" in row.error_message


def close_breakers(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(update(analyzer_services).values(open_until=None, failures=0))


def test_a_service_whose_port_is_open_but_that_is_ill_gets_no_task(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    with analyzer(health="degraded") as service:
        report, _ = lines_of(engine, plan_for(tmp_path, service, linger=1.5))
        assert service.requests == []
    assert report.counts == {"waiting": 1}
    with reading(engine) as connection:
        known = connection.execute(select(analyzer_services)).one()
    assert (known.service, known.healthy) == (STATIC, False)
    assert "'degraded'" in known.message


def test_one_health_check_serves_all_tasks_of_a_service(engine: Engine, tmp_path: Path) -> None:
    """Every task of a service that was down waited its own thirty seconds for it, one after the other."""
    for number in range(20):
        add_task(engine, f"task_{number}")
    with analyzer(after(0.2, answers)) as service:
        report, _ = lines_of(engine, plan_for(tmp_path, service))
        assert service.checks == 1
    assert report.counts == {"completed": 20}


def test_a_service_without_a_url_is_not_available(engine: Engine, tmp_path: Path) -> None:
    add_task(engine, service="licence-checker")
    lines_of(engine, plan_for(tmp_path))
    assert "no URL is known for licence-checker" in row_of(engine).error_message
    assert status_of(engine) == "pending"


def test_the_url_in_the_table_wins(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    with analyzer() as service:
        with writing(engine) as connection:
            connection.execute(analyzer_services.insert().values(service=STATIC, url=service.url))
        lines_of(engine, plan_for(tmp_path, f"ws://127.0.0.1:{free_port()}"))
    assert status_of(engine) == "completed"


@pytest.mark.parametrize(("timeout", "default"), [(0.4, 60.0), (0, 0.4), (-1, 0.4), (None, 0.4)])
def test_the_timeout_of_a_task_is_a_deadline_and_none_means_the_default(
    engine: Engine, tmp_path: Path, timeout: float | None, default: float
) -> None:
    add_task(engine, timeout_seconds=timeout)
    policy = Policy(lease=timedelta(seconds=5), task_timeout=timedelta(seconds=default))
    with analyzer(is_silent) as service:
        lines_of(engine, plan_for(tmp_path, service, policy=policy))
        wait_until(lambda: bool(service.dropped), 10, "the connection to be closed")
    row = row_of(engine)
    assert (row.status, row.error_class) == ("failed", "timeout")
    assert row.error_message.startswith("timeout: no result within 0.")
    assert (row.completed_at - row.started_at).total_seconds() < 5


def test_progress_is_written_down_while_a_task_runs(engine: Engine, tmp_path: Path) -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        frame = {"type": "progress_update", "correlation_id": request["id"], "stage": "scan", "message": "m"}
        await connection.send(json.dumps(frame | {"progress": 40}))
        await asyncio.sleep(2.5)
        await answers(connection, request)

    add_task(engine)
    with analyzer(behave) as service, working(engine, plan_for(tmp_path, service)) as worker:
        wait_until(lambda: row_of(engine).progress == 40, 10, "progress")
        assert (row_of(engine).status, row_of(engine).current_step) == ("running", "scan")
        worker.until("running -> completed")
    assert "task_1: 40 % scan m" in worker.lines
    assert ("progress", "") in [(kind, after) for kind, after in events_of(engine)]


def test_progress_may_come_through_a_gateway(engine: Engine, tmp_path: Path) -> None:
    """The analyzers at hand tell their progress to a gateway, not on the socket of their analysis."""
    from websockets.sync.server import serve

    request: dict[str, Any] = {}

    def gateway(connection: Any) -> None:
        assert json.loads(connection.recv())["data"] == {"subscribe": "events"}
        connection.send("junk")
        wait_until(lambda: bool(request), 10, "the request")
        frame = {
            "type": "progress_update",
            "id": "of the frame",
            "data": {"analysis_id": request["id"], "stage": "far"},
        }
        connection.send(json.dumps(frame))
        connection.send(json.dumps({"type": "progress_update", "correlation_id": "another", "stage": "x"}))
        connection.recv()

    async def behave(connection: ServerConnection, asked: dict[str, Any]) -> None:
        request.update(asked)
        await after(2.5, answers)(connection, asked)

    add_task(engine)
    import threading

    with serve(gateway, "127.0.0.1", 0) as server, analyzer(behave) as service:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        lines_of(engine, plan_for(tmp_path, service, gateway=f"ws://127.0.0.1:{port}"))
        server.shutdown()
    assert status_of(engine) == "completed"
    with reading(engine) as connection:
        told = connection.scalars(select(task_events.c.reason).where(task_events.c.kind == "progress")).all()
    assert told == ["far"]


def test_a_gateway_that_is_not_there_holds_nothing_up(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    with analyzer() as service:
        lines_of(engine, plan_for(tmp_path, service, gateway=f"ws://127.0.0.1:{free_port()}"))
    assert status_of(engine) == "completed"


def test_cancelling_a_running_task_closes_its_socket_and_drops_its_result(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    with analyzer(after(30, answers)) as service, working(engine, plan_for(tmp_path, service)) as worker:
        wait_until(lambda: bool(service.requests), 10, "the request")
        ask_to_cancel(engine)
        worker.until("running -> cancelled")
        wait_until(lambda: bool(service.dropped), 10, "the socket to be closed")
    row = row_of(engine)
    assert (row.status, row.result_summary) == ("cancelled", None)
    assert row.completed_at is not None
    assert findings_in(engine) == []


def test_a_result_that_comes_after_the_cancellation_is_dropped(engine: Engine, tmp_path: Path) -> None:
    """Cancelled, but not yet noticed by the worker when the answer comes."""

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await asyncio.to_thread(ask_to_cancel, engine)
        await answers(connection, request)

    add_task(engine)
    with analyzer(behave) as service:
        report, _ = lines_of(engine, plan_for(tmp_path, service, watch=5.0))
    assert report.counts == {"cancelled": 1}
    assert (status_of(engine), findings_in(engine)) == ("cancelled", [])
    assert list((tmp_path / "results").rglob("*.json")) == []


def test_a_task_that_was_taken_away_is_dropped(engine: Engine, tmp_path: Path) -> None:
    """The lease ran out while the worker slept; another worker has the task now."""
    add_task(engine)
    with analyzer(after(30, answers)) as service, working(engine, plan_for(tmp_path, service)) as worker:
        wait_until(lambda: bool(service.requests), 10, "the request")
        change(engine, lease_owner="another", attempt=2)
        worker.until("was taken away (attempt 1)")
        wait_until(lambda: bool(service.dropped), 10, "the socket to be closed")
    row = row_of(engine)
    assert (row.status, row.lease_owner, row.attempt) == ("running", "another", 2)


def test_the_late_result_of_a_worker_that_lost_its_task_is_not_stored(engine: Engine, tmp_path: Path) -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        await asyncio.to_thread(change, engine, lease_owner="another", attempt=2)
        await answers(connection, request)

    add_task(engine)
    with analyzer(behave) as service:
        report, _ = lines_of(engine, plan_for(tmp_path, service, watch=5.0))
    assert report.counts == {"lost": 1}
    row = row_of(engine)
    assert (row.status, row.lease_owner, row.result_summary) == ("running", "another", None)
    assert findings_in(engine) == []
    assert list((tmp_path / "results").rglob("*.json")) == []


def test_a_claim_whose_answer_was_lost_is_handed_back(engine: Engine, tmp_path: Path) -> None:
    """The connection broke after the commit: the worker has a task that it never heard of."""
    with working(engine, plan_for(tmp_path, linger=60.0)) as worker:
        owner = worker.life._worker.desk.owner
        wait_until(lambda: worker_row(engine) is not None, 10, "the worker")
        add_task(engine, status="running", lease_owner=owner, attempt=1)
        worker.until("task_1: running -> handed back (its worker never heard of its claim)")


def worker_row(engine: Engine) -> Any:
    with reading(engine) as connection:
        return connection.execute(select(analysis_workers)).one_or_none()


def test_a_worker_that_is_stopped_hands_its_tasks_back_and_keeps_what_is_done(engine: Engine, tmp_path: Path) -> None:
    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        if "quick" in request["id"]:
            await answers(connection, request)
        else:
            await asyncio.sleep(60)

    for name in ("task_quick", "task_slow", "task_slower"):
        add_task(engine, name)
    with analyzer(behave) as service, working(engine, plan_for(tmp_path, service)) as worker:
        wait_until(lambda: len(service.requests) == 3, 10, "the requests")
        worker.until("task_quick: running -> completed")
        worker.stop()
        wait_until(lambda: len(service.dropped) == 2, 10, "the sockets to be closed")
    assert status_of(engine, "task_quick") == "completed"
    for name in ("task_slow", "task_slower"):
        row = row_of(engine, name)
        assert (row.status, row.attempt, row.lease_owner, row.next_attempt_at) == ("pending", 0, None, None)
    assert worker.report is not None
    assert worker.report.counts == {"completed": 1, "handed back": 2}
    assert worker_row(engine).stopped_at is not None


def test_an_interruption_of_the_main_thread_hands_the_tasks_back(engine: Engine, tmp_path: Path) -> None:
    """As when the run is terminated in the UI: an exception out of nowhere."""

    class Terminated(BaseException):
        pass

    def told(line: str) -> None:
        if "pending -> running" in line:
            raise Terminated

    add_task(engine)
    with analyzer(is_silent) as service, pytest.raises(Terminated):
        run_worker(engine, plan_for(tmp_path, service), told=told)
    assert (status_of(engine), row_of(engine).attempt) == ("pending", 0)
    assert "interrupted (Terminated)" in row_of(engine).error_message


def test_a_worker_waits_for_new_tasks_before_it_ends(engine: Engine, tmp_path: Path) -> None:
    with analyzer() as service, working(engine, plan_for(tmp_path, service, linger=30.0)):
        for number in range(3):
            add_task(engine, f"task_{number}")
            wait_until(lambda number=number: status_of(engine, f"task_{number}") == "completed", 10, "the task")


def test_a_worker_at_the_end_of_its_lifetime_finishes_what_it_has_and_takes_no_more(
    engine: Engine, tmp_path: Path
) -> None:
    add_task(engine, "task_1")
    plan = plan_for(tmp_path, linger=60.0, lifetime=1.0)
    with analyzer(after(2, answers)) as service, working(engine, replace(plan, urls={STATIC: service.url})) as worker:
        wait_until(lambda: bool(service.requests), 10, "the request")
        worker.life.thread.join(1.2)
        add_task(engine, "task_2")
        worker.life.thread.join(20)
        assert not worker.life.thread.is_alive()
    assert (status_of(engine, "task_1"), status_of(engine, "task_2")) == ("completed", "pending")


def test_a_worker_whose_task_may_take_longer_than_its_lifetime_works_on_meanwhile(
    engine: Engine, tmp_path: Path
) -> None:
    """Replaced every half hour, workers that waited for their last task took all places that Dagster has for runs."""
    add_task(engine, "task_long", timeout_seconds=7200)
    with analyzer() as service, working(engine, plan_for(tmp_path, service, linger=60.0, lifetime=0.5)) as worker:
        worker.until("task_long: running -> completed")
        worker.life.thread.join(0.6)
        add_task(engine, "task_2")
        worker.until("task_2: running -> completed")


def test_usual_tasks_do_not_prolong_the_life_of_a_worker(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, lifetime=600.0)
    assert [plan.lifetime_with(seconds) for seconds in (0.0, 1800.0, 1801.0, 7200.0)] == [600.0, 600.0, 1801.0, 7200.0]


def test_a_worker_has_no_more_tasks_at_once_than_it_may(engine: Engine, tmp_path: Path) -> None:
    at_once = [0, 0]

    async def behave(connection: ServerConnection, request: dict[str, Any]) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.1)
        at_once[0] -= 1
        await answers(connection, request)

    for number in range(12):
        add_task(engine, f"task_{number}")
    with analyzer(behave) as service:
        report, _ = lines_of(engine, plan_for(tmp_path, service, concurrency=4))
    assert report.counts == {"completed": 12}
    assert at_once[1] == 4


def test_children_of_a_task_are_done_each_by_its_service(engine: Engine, tmp_path: Path) -> None:
    submit_task(
        engine, ["static-analyzer", "dynamic-analyzer"], "a/app0", options={"tools_by_service": {STATIC: ["ruff"]}}
    )
    with analyzer() as static, analyzer(replies(status="partial_success")) as dynamic:
        urls = {STATIC: static.url, "dynamic-analyzer": dynamic.url}
        report, _ = lines_of(engine, plan_for(tmp_path, urls=urls))
        assert [one["tools"] for one in static.requests] == [["ruff"]]
        assert [one["type"] for one in dynamic.requests] == ["dynamic_analyze"]
    assert report.counts == {"completed": 1, "partial_success": 1}
    with reading(engine) as connection:
        parent = connection.execute(select(analysis_tasks).where(analysis_tasks.c.service == "unified")).one()
    assert parent.status == "partial_success"
    assert parent.result_summary["summary"]["total_findings"] == 2


def test_a_task_whose_result_no_database_takes_fails_in_words(postgres_engine: Engine, tmp_path: Path) -> None:
    """One absurd value must not keep the worker busy for ever, nor take the batch with it."""
    with postgres_engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE analysis_results ADD CHECK (rule_id <> 'S105' OR task_id <> 'task_1')")
    for number in range(3):
        add_task(postgres_engine, f"task_{number}")
    with analyzer() as service:
        lines_of(postgres_engine, plan_for(tmp_path, service))
    assert [status_of(postgres_engine, f"task_{n}") for n in range(3)] == ["completed", "failed", "completed"]
    assert row_of(postgres_engine, "task_1").error_message.startswith("its result cannot be stored: IntegrityError")
    assert not (tmp_path / "results" / "openai_gpt-4o" / "app0" / "task_1").exists()


def test_a_task_whose_files_cannot_be_written_fails_in_words(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    add_task(engine)
    with analyzer() as service:
        lines_of(engine, plan_for(tmp_path, service))
    assert status_of(engine) == "failed"
    folder = tmp_path / "results" / "openai_gpt-4o" / "app0"
    assert row_of(engine).error_message == f"its result cannot be written to {folder}: Not a directory"


def test_a_worker_cannot_begin_without_a_database(tmp_path: Path) -> None:
    from ops_pipeline.database.engine import connect

    empty = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(DatabaseProblem, match="Run `ops-pipeline migrate`"):
        run_worker(empty, plan_for(tmp_path))


def test_a_generation_tells_which_application_it_made(engine: Engine, tmp_path: Path) -> None:
    add_task(engine, service="generation", target="openai/gpt-4o", options={"template_slug": "crud"})
    with analyzer(replies(analysis={"status": "success", "app_number": 0})) as service:
        lines_of(engine, plan_for(tmp_path, urls={"generation": service.url}))
        assert service.requests[0]["config"] == {"template_slug": "crud"}
    row = row_of(engine)
    assert row.result_summary["application"] == "openai/gpt-4o/app0"
    assert row.result_summary["files"]["folder"].endswith("results/openai_gpt-4o/app0/task_1")


def test_storing_again_changes_nothing_and_keeps_what_a_person_said(engine: Engine, tmp_path: Path) -> None:
    add_task(engine)
    extra = reply({"type": "static_analyze"})
    runs = extra["analysis"]["sarif_export"]["runs"]
    other = {**runs[0]["results"][0], "ruleId": "S999"}
    more = {**extra["analysis"], "sarif_export": {"runs": [{**runs[0], "results": [*runs[0]["results"], other]}]}}
    with analyzer(replies(analysis=more)) as service:
        lines_of(engine, plan_for(tmp_path, service))
        before = {row.rule_id: row.id for row in findings_in(engine)}
        assert set(before) == {"S105", "S999"}
        with writing(engine) as connection:
            connection.execute(update(analysis_results).values(review="false_positive"))
        change(engine, status="pending", completed_at=None)
        service.behaviour = answers
        lines_of(engine, plan_for(tmp_path, service))
    (row,) = findings_in(engine)
    assert (row.id, row.review) == (before["S105"], "false_positive")
    files = row_of(engine).result_summary["files"]
    assert flaws_of(Path(files["folder"]), files["manifest_sha256"]) == []
