"""Tasks that end at the same moment, and commands in between: transactions that are really interleaved."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from ops_pipeline.analysis.pipelines.advance import advance
from ops_pipeline.analysis.pipelines.control import cancel, pause, resume, retry, submit_pipeline
from ops_pipeline.analysis.pipelines.rules import progress_of
from ops_pipeline.analysis.pipelines.store import read_pipeline
from ops_pipeline.analysis.tables import TERMINAL, analysis_tasks, generated_applications
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.errors import Conflict
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline_tests.analysis.pipelines.lab import (
    ANALYSIS,
    GENERATION,
    application,
    definition,
    end,
    end_in,
    erase,
    events_of,
    job_statuses,
    row_of,
    run_all,
    status,
    step_over,
    steps_of,
    submitted,
    tasks_of,
    unfinished,
)
from ops_pipeline_tests.usage.calls import examples, rows


@dataclass
class Slow:
    """A transaction that ends tasks and commits only when it is told to, in a thread of its own."""

    engine: Engine
    ids: list[str]

    def __post_init__(self) -> None:
        self.written, self._may_commit = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._run)

    def _run(self) -> None:
        with writing(self.engine) as connection:
            end_in(connection, self.ids)
            self.written.set()
            assert self._may_commit.wait(30)

    def commit(self) -> None:
        """Let it commit, and wait until it has."""
        self._may_commit.set()
        self._done.result(30)
        self._pool.shutdown()


def test_two_tasks_that_end_together_begin_the_next_step_once(engine: Engine) -> None:
    """Each of the last two saw the other one as not yet ended: nobody began the next stage. Or both did."""
    pipeline = submitted(engine, GENERATION | {"models": ["gpt"]}, ANALYSIS)
    first, second = unfinished(engine, pipeline)
    one = Slow(engine, [first])
    assert one.written.wait(30)
    other = Slow(engine, [second])
    # On PostgreSQL the other one has ended its task, and waits for the pipeline; on SQLite it waits to begin.
    assert not other.written.wait(0.3)
    one.commit()
    assert other.written.wait(30)
    other.commit()
    assert steps_of(engine, pipeline) == ["completed", "running"]
    assert [task["job_index"] for task in tasks_of(engine, pipeline, step=1)] == [0, 1]
    begun = [
        event for event in events_of(engine, pipeline) if (event["step"], event["after"]) == ("analysis", "running")
    ]
    assert len(begun) == 1


def test_workers_that_end_tasks_of_several_pipelines_in_any_order_never_wait_in_a_circle(engine: Engine) -> None:
    pipelines = [submitted(engine, GENERATION | {"concurrency": 4, "models": ["gpt"] * 2}) for _ in range(3)]
    ids = [unfinished(engine, pipeline) for pipeline in pipelines]
    batches = [[ids[0][0], ids[2][0], ids[1][0]], [ids[2][1], ids[0][1]], [ids[1][1], ids[0][2], ids[2][2]]]
    with ThreadPoolExecutor(3) as pool:
        # Without another attempt: a deadlock would be told.
        list(pool.map(lambda batch: end(engine, batch), batches))
    assert Counter(job_statuses(engine, pipelines[0]))["completed"] == 3


def test_a_command_that_comes_while_a_task_ends_waits_for_it(postgres_engine: Engine) -> None:
    engine = postgres_engine
    pipeline = submitted(engine)
    slow = Slow(engine, unfinished(engine, pipeline)[:1])
    assert slow.written.wait(30)
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(cancel, engine, pipeline, lambda engine, ids, _: end(engine, ids, "cancelled"))
        slow.commit()
        assert command.result(30) == 2
    assert status(engine, pipeline) == "cancelled"
    assert job_statuses(engine, pipeline) == ["completed", "cancelled", "cancelled", "cancelled"]


def test_a_pause_locks_children_before_their_parents_as_workers_do(postgres_engine: Engine) -> None:
    """A worker that had a child waited for the parent, which a pause had that waited for the child."""
    engine = postgres_engine
    application(engine, "gpt:1")
    pipeline = submitted(engine, step_over("gpt:1", services=["static-analyzer", "ai-analyzer"]))
    (parent,) = tasks_of(engine, pipeline)
    with engine.connect() as worker, worker.begin() as transaction, ThreadPoolExecutor(1) as pool:
        tasks = select(analysis_tasks.c.id)
        worker.execute(tasks.where(analysis_tasks.c.parent_id == parent["id"]).with_for_update())
        command = pool.submit(pause, engine, pipeline)
        _wait_for_a_waiter(engine)
        worker.execute(tasks.where(analysis_tasks.c.id == parent["id"]).with_for_update(nowait=True))
        transaction.commit()
        assert command.result(30) == 3


def test_one_key_submitted_by_two_programs_at_once_is_one_pipeline(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: submit_pipeline(engine, definition(), pipeline_id="mine"), range(4)))
    assert len(tasks_of(engine, "mine")) == 2
    assert len(rows(engine, generated_applications)) == 4


def test_pipelines_submitted_at_once_never_share_a_number(engine: Engine) -> None:
    models = [["gpt", "claude", "llama"], ["llama", "gpt"], ["claude", "gpt"], ["gpt"]]

    def submit(names: list[str]) -> str:
        return submitted(engine, GENERATION | {"models": names})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, models * 2))
    found = Counter((row["model_slug"], row["app_number"]) for row in rows(engine, generated_applications))
    assert set(found.values()) == {1}
    assert Counter(model for model, _ in found) == {"gpt": 16, "claude": 8, "llama": 8}
    assert max(number for model, number in found if model == "gpt") == 16


def test_a_number_that_somebody_takes_meanwhile_is_left_to_them(postgres_engine: Engine) -> None:
    engine = postgres_engine
    with engine.connect() as stranger, stranger.begin() as transaction, ThreadPoolExecutor(1) as pool:
        values = {"id": "theirs", "model_slug": "gpt", "app_number": 1}
        stranger.execute(generated_applications.insert(), [values])
        submission = pool.submit(submitted, engine, GENERATION | {"models": ["gpt"]})
        _wait_for_a_waiter(engine)
        transaction.commit()
        pipeline = submission.result(30)
    assert {task["target"] for task in tasks_of(engine, pipeline)} == {"gpt/app2", "gpt/app3"}


def _wait_for_a_waiter(engine: Engine) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    for _ in range(300):
        with reading(engine) as connection:
            if connection.exec_driver_sql(waiting).scalar():
                return
        threading.Event().wait(0.05)
    pytest.fail("nobody waited")


def test_a_locked_database_is_tried_again_and_fails_no_pipeline(sqlite_engine: Engine) -> None:
    """A pipeline was marked as failed because somebody else was writing at that moment."""
    pipeline = submitted(sqlite_engine)
    first, *_ = unfinished(sqlite_engine, pipeline)
    attempts = []

    def end_with_trouble() -> None:
        attempts.append(1)
        with writing(sqlite_engine) as connection:
            end_in(connection, [first])
            if len(attempts) < 3:
                raise Conflict("database is locked")

    despite_conflicts(end_with_trouble)
    assert len(attempts) == 3
    assert (status(sqlite_engine, pipeline), job_statuses(sqlite_engine, pipeline)[0]) == ("running", "completed")


OUTCOMES = ["completed", "partial_success", "failed", "cancelled"]
steps_drawn = st.lists(
    st.builds(
        lambda apps, critical, concurrency, fed, several: {
            "apps": apps,
            "critical": critical,
            "concurrency": concurrency,
            "fed": fed,
            "several": several,
        },
        st.integers(1, 4),
        st.booleans(),
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def drawn_definition(drawn: list[dict[str, Any]]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for index, one in enumerate(drawn):
        services = ["a", "b"] if one["several"] else "a"
        step = {"name": f"s{index}", "services": services}
        step |= {name: one[name] for name in ("critical", "concurrency")}
        if index and one["fed"]:
            step["applications_of"] = f"s{index - 1}"
        else:
            step |= {"models": ["m"], "templates": ["t"] * one["apps"]}
        steps.append(step)
    return definition(*steps)


def check_rows(engine: Engine, pipeline: str) -> None:
    """What must hold at every moment."""
    status(engine, pipeline)
    keys = Counter(task["run_key"] for task in tasks_of(engine, pipeline))
    assert set(keys.values()) <= {1}
    with reading(engine) as connection:
        read = read_pipeline(connection, pipeline)
    assert read is not None
    for step in read.steps:
        assert step.count("running") <= step.concurrency
    progress = progress_of(read.steps)
    assert progress.running == len(unfinished(engine, pipeline))


@examples(15)
@given(drawn=steps_drawn, seed=st.integers(0, 2**16))
def test_every_job_runs_once_whatever_the_order_in_which_tasks_end(
    engine: Engine, drawn: list[dict[str, Any]], seed: int
) -> None:
    """Also with callbacks that are told twice, pauses, and looks in between."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    erase(engine)
    pipeline = submitted_drawn(engine, drawn)
    while row_of(engine, pipeline)["status"] not in TERMINAL:
        check_rows(engine, pipeline)
        ids = unfinished(engine, pipeline)
        move = chance.choice(["end", "end", "end", "look", "pause"])
        if move == "pause":
            pause(engine, pipeline)
            chance.random() < 0.5 and ids and end(engine, [chance.choice(ids)], chance.choice(OUTCOMES))
            if row_of(engine, pipeline)["status"] not in TERMINAL:
                resume(engine, pipeline)
        elif move == "end" and ids:
            end(engine, chance.sample(ids, chance.randint(1, len(ids))), chance.choice(OUTCOMES))
        else:
            with writing(engine) as connection:
                advance(connection, pipeline, database_now(connection))
    check_rows(engine, pipeline)
    ran = Counter((task["step"], task["job_index"]) for task in tasks_of(engine, pipeline))
    assert set(ran.values()) <= {1}
    for position in range(len(drawn)):
        assert set(job_statuses(engine, pipeline, position)) <= {*OUTCOMES, "skipped"}


def submitted_drawn(engine: Engine, drawn: list[dict[str, Any]]) -> str:
    return submit_pipeline(engine, drawn_definition(drawn))


@examples(10)
@given(
    drawn=steps_drawn,
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=12, max_size=12),
    orders=st.tuples(st.integers(0, 999), st.integers(0, 999)),
)
def test_the_order_in_which_tasks_end_does_not_matter(
    sqlite_engine: Engine, drawn: list[dict[str, Any]], outcomes: list[str], orders: tuple[int, int]
) -> None:
    """The same ends in another order, one by one or many together, lead to the same status of everything."""
    engine, ends = sqlite_engine, []
    for order in orders:
        chance = random.Random(order)  # noqa: S311 - no secret
        erase(engine)
        pipeline = submitted_drawn(engine, drawn)
        while left := [task for task in tasks_of(engine, pipeline) if task["status"] not in TERMINAL]:
            for task in chance.sample(left, chance.randint(1, len(left))):
                end(engine, [task["id"]], outcomes[task["step"] * 4 + task["job_index"]])
        jobs = [job_statuses(engine, pipeline, position) for position in range(len(drawn))]
        ends.append((status(engine, pipeline), steps_of(engine, pipeline), jobs))
    assert ends[0] == ends[1]


def test_four_workers_end_a_large_pipeline_together(engine: Engine) -> None:
    for number in range(24):
        application(engine, f"gpt:{number}")
    apps = [f"gpt:{number}" for number in range(24)]
    pipeline = submitted(
        engine, step_over(*apps, name="one", concurrency=7), step_over(*apps, name="two", concurrency=5)
    )
    chance = random.Random(7)  # noqa: S311 - no secret

    def work(_: int) -> None:
        while ids := unfinished(engine, pipeline):
            despite_conflicts(end, engine, [chance.choice(ids)], chance.choice(["completed", "failed"]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert status(engine, pipeline) == "partial_success"
    ran = Counter((task["step"], task["job_index"]) for task in tasks_of(engine, pipeline))
    assert ran == {(step, job): 1 for step in (0, 1) for job in range(24)}
    failed = job_statuses(engine, pipeline).count("failed") + job_statuses(engine, pipeline, 1).count("failed")
    assert retry(engine, pipeline) == failed
    run_all(engine, pipeline)
    assert status(engine, pipeline) == "completed"
