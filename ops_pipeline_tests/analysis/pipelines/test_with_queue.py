"""Pipelines with the real queue: workers that claim and end tasks while operators pause, cancel and retry."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy import Engine

from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.operating import cancel_tasks
from ops_pipeline.analysis.pipelines.control import Refused, cancel, pause, resume, retry
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import failed, succeeded
from ops_pipeline.analysis.tables import TERMINAL
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline_tests.analysis.pipelines.lab import ANALYSIS, GENERATION, row_of, status, submitted, tasks_of

SEVERAL = ANALYSIS | {"services": ["static-analyzer", "ai-analyzer"]}
SECONDS = 3


def work(engine: Engine, owner: str, chance: random.Random) -> int:
    """Claim tasks and end them in any order, without another attempt: a deadlock would be told. How many there were."""
    with writing(engine) as connection:
        tasks = claim(connection, owner, 6, policy=Policy(), now=database_now(connection))
    chance.shuffle(tasks)
    results = [succeeded(task) if chance.random() < 0.8 else failed(task, "no") for task in tasks]
    with writing(engine) as connection:
        finish(connection, owner, results, policy=Policy(), now=database_now(connection), jitter=chance.random)
    return len(tasks)


def command(engine: Engine, pipeline: str, chance: random.Random) -> None:
    with suppress(Refused):
        told = chance.choice([pause, resume, resume, retry, cancel])
        if told is not cancel:
            told(engine, pipeline)
        elif chance.random() < 0.1:
            cancel(engine, pipeline, cancel_tasks)


def test_workers_and_commands_at_once_never_wait_in_a_circle_and_every_attempt_runs_once(engine: Engine) -> None:
    steps = (GENERATION | {"templates": ["chat"] * 4, "concurrency": 4}, SEVERAL)
    pipelines = [submitted(engine, *steps) for _ in range(4)]
    over = threading.Event()

    def worker(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - no secret
        while not over.is_set():
            if not work(engine, f"worker-{number}", chance):
                over.wait(0.02)

    def operator() -> None:
        chance = random.Random(99)  # noqa: S311 - no secret
        while not over.wait(0.01):
            command(engine, chance.choice(pipelines), chance)

    with ThreadPoolExecutor(4) as pool:
        at_work = [*(pool.submit(worker, number) for number in range(3)), pool.submit(operator)]
        over.wait(SECONDS)
        over.set()
        for one in at_work:
            one.result(30)
    chance = random.Random(7)  # noqa: S311 - no secret
    for pipeline in pipelines:
        with suppress(Refused):
            resume(engine, pipeline)
    while work(engine, "the-last", chance):
        pass
    for pipeline in pipelines:
        assert row_of(engine, pipeline)["status"] in TERMINAL
        assert status(engine, pipeline) in TERMINAL
        attempts = Counter(task["run_key"] for task in tasks_of(engine, pipeline))
        assert set(attempts.values()) == {1}
