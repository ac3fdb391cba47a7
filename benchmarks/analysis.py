"""The benchmark of the task queue: `python -m benchmarks.analysis`; results are in RESULTS.md.

Ten thousand tasks that do nothing, one worker, batches of a hundred: claimed and ended, with leases, fences and events,
on PostgreSQL and SQLite; beside PgQueuer (at least as fast) and procrastinate (at least five times as fast) on the same
server, in turn. `benchmarks/queues.sh` makes the environment of these two. A missed target is printed, and no failure.

What belongs here: the queue. Workers with analyzers are measured elsewhere.
"""

from __future__ import annotations

import json
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from sqlalchemy import Engine, create_engine, make_url

from benchmarks.databases import DATABASES, Database, database
from benchmarks.report import Measure, machine, table
from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import Task, succeeded
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.database.engine import database_now, writing

PROJECT = Path(__file__).parents[1]
RIVALS_PYTHON = PROJECT / ".venv-queues/bin/python"
SQLITE_PER_SECOND = 5_000
AGAINST = {"pgqueuer": 1.0, "procrastinate": 5.0}
POLICY = Policy()
OWNER = "worker"


@dataclass(frozen=True)
class Settings:
    """What is measured: tasks, tasks of the slow rival, batch size, and rounds."""

    tasks: int
    few: int
    batch: int
    rounds: int


@click.command(context_settings={"show_default": True})
@click.option("--tasks", default=10_000, help="How many tasks.")
@click.option("--few", default=2_000, help="How many for procrastinate, which takes the longest.")
@click.option("--batch", default=100, help="Tasks that are claimed at once, by us and by PgQueuer.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="How often each is measured, in turn.")
@click.option("--database", "names", multiple=True, type=click.Choice(DATABASES), default=DATABASES, help="Where.")
def main(names: Sequence[str], **chosen: int) -> None:
    """Measure claims and ends, beside two other queues."""
    settings, where = Settings(**chosen), machine()
    subprocess.run([PROJECT / "benchmarks/queues.sh"], check=True)
    measures: list[Measure] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="ops_pipeline_queue_") as folder:
            Path(folder).chmod(0o755)
            with database(name, Path(folder)) as here:
                measures += on_sqlite(here, settings) if name == "sqlite" else on_postgresql(here, settings)
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures).replace("calls/s", "tasks/s"), flush=True)


def on_sqlite(here: Database, settings: Settings) -> list[Measure]:
    """Our queue on SQLite."""
    seconds = statistics.median(ours(here, settings) for _ in range(settings.rounds))
    rate = settings.tasks / seconds
    target = f">= {SQLITE_PER_SECOND:,}/s"
    return [Measure("SQLite: claim and end", seconds, settings.tasks, "", target, rate >= SQLITE_PER_SECOND)]


def on_postgresql(here: Database, settings: Settings) -> list[Measure]:
    """Our queue on PostgreSQL and the others, one after the other in each round."""
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in AGAINST}}
    for number in range(settings.rounds):
        rates["ours"].append(settings.tasks / ours(here, settings))
        rates["pgqueuer"].append(settings.tasks / rival(here, f"pgqueuer{number}", settings.tasks, settings.batch))
        rates["procrastinate"].append(settings.few / rival(here, f"procrastinate{number}", settings.few, 50))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    measures = [Measure("PostgreSQL: claim and end", settings.tasks / middle["ours"], settings.tasks)]
    for name, least in AGAINST.items():
        # Of each round: what else the machine does then slows down both.
        times = statistics.median(mine / other for mine, other in zip(rates["ours"], rates[name], strict=True))
        tasks = settings.tasks if name == "pgqueuer" else settings.few
        told, target = f"ours is {times:.2f} times as fast", f">= {least:g} times"
        measures.append(Measure(f"  {name}", tasks / middle[name], tasks, told, target, times >= least))
    return measures


def ours(here: Database, settings: Settings) -> float:
    """The seconds from the first claim to the last end; one thread claims, one ends, as in a worker."""
    for name in ("analysis_tasks", "task_events"):
        here.execute(f"DELETE FROM {name}")
    with writing(here.engine) as connection:
        submissions = [Submission(("noop",), f"acme/app{number}") for number in range(settings.tasks)]
        submit(connection, submissions, database_now(connection))
    here.execute(*(["VACUUM ANALYZE"] if here.name == "postgresql" else ["ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"]))
    claimed: queue.Queue[list[Task]] = queue.Queue(3)
    done: list[str] = []

    def end_all() -> None:
        while tasks := claimed.get():
            done.extend(end(here.engine, tasks))

    started = time.perf_counter()
    thread = threading.Thread(target=end_all)
    thread.start()
    while tasks := take(here.engine, settings.batch):
        claimed.put(tasks)
    claimed.put([])
    thread.join()
    seconds = time.perf_counter() - started
    if len(set(done)) != settings.tasks:
        raise RuntimeError(f"{len(set(done))} of {settings.tasks} were done")
    return seconds


def take(engine: Engine, batch: int) -> list[Task]:
    with writing(engine) as connection:
        return claim(connection, OWNER, batch, policy=POLICY, now=database_now(connection))


def end(engine: Engine, tasks: Sequence[Task]) -> dict[str, str]:
    with writing(engine) as connection:
        results, now = [succeeded(task) for task in tasks], database_now(connection)
        return finish(connection, OWNER, results, policy=POLICY, now=now, jitter=random.random)


def rival(here: Database, name: str, tasks: int, setting: int) -> float:
    """The seconds that another queue takes, in a database and a process of its own."""
    admin = create_engine(here.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    url = make_url(here.url).set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    script = [RIVALS_PYTHON, PROJECT / "benchmarks/queue_rivals.py", name.rstrip("0123456789"), url]
    done = subprocess.run([*script, str(tasks), str(setting)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["seconds"]


if __name__ == "__main__":
    sys.exit(main())
