"""The benchmark of pipelines: `python -m benchmarks.pipelines`; results are in RESULTS.md.

Ten pipelines of three steps, a hundred jobs each, over tasks that do nothing: claimed and ended in batches by one
worker, while every transaction that ends tasks takes in their ends, submits the next jobs and begins the next steps.
The floor is the same number of tasks without pipelines, claimed and ended in the same way; beside it the same with
their submission, which is a part of advancing. Every job must have ended once, and every pipeline completed.

What belongs here: what pipelines cost the queue. What does not: the queue itself (`analysis`).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from sqlalchemy import func, insert, select

from benchmarks.analysis import end, take
from benchmarks.databases import DATABASES, Database, database
from benchmarks.report import Measure, machine, table
from ops_pipeline.analysis.pipelines.control import submit_pipeline
from ops_pipeline.analysis.pipelines.tables import pipeline_jobs, pipelines
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.analysis.tables import COMPLETED, generated_applications
from ops_pipeline.database.engine import database_now, reading, writing

TIMES_SUBMITTED = 3.0
"""A job is also a row that is laid, read and written twice, and part of a pipeline that is read with all its counts."""
TABLES = ("analysis_tasks", "task_events", "pipelines", "pipeline_steps", "pipeline_jobs", "pipeline_events")


@dataclass(frozen=True)
class Size:
    """What is measured: pipelines, steps of each, jobs of each step, batch size of the worker, and rounds."""

    pipelines: int
    steps: int
    jobs: int
    batch: int
    rounds: int

    @property
    def tasks(self) -> int:
        """The tasks of all pipelines."""
        return self.pipelines * self.steps * self.jobs


@click.command(context_settings={"show_default": True})
@click.option("--pipelines", default=10, type=click.IntRange(1), help="How many pipelines, at the same time.")
@click.option("--steps", default=3, type=click.IntRange(1), help="Steps of each, one after the other.")
@click.option("--jobs", default=100, type=click.IntRange(1), help="Jobs of each step, all at the same time.")
@click.option("--batch", default=100, help="Tasks that are claimed and ended at once.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each is measured, in turn.")
@click.option("--database", "names", multiple=True, type=click.Choice(DATABASES), default=DATABASES, help="Where.")
def main(names: Sequence[str], **chosen: int) -> None:
    """Measure what advancing pipelines costs."""
    size, where = Size(**chosen), machine()
    measures: list[Measure] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="ops_pipeline_pipelines_") as folder:
            Path(folder).chmod(0o755)
            with database(name, Path(folder)) as here:
                measures += measured(here, size)
    print(f"{where['cores']} cores of {where['cpu']}, {where['date']}; load average {where['load_average'][0]}\n")
    print(table(measures).replace("calls/s", "tasks/s"), flush=True)


def measured(here: Database, size: Size) -> list[Measure]:
    """One database: bare tasks and pipelines in turn, and their ratios within each round."""
    with writing(here.engine) as connection:
        rows = [{"id": f"app_{n}", "model_slug": "acme", "app_number": n} for n in range(size.jobs)]
        connection.execute(insert(generated_applications), rows)
    rounds = [(*bare(here, size), advanced(here, size)) for _ in range(size.rounds)]
    submitted, ended, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
    floor = statistics.median(one[2] / one[1] for one in rounds)
    fair = statistics.median(one[2] / (one[0] + one[1]) for one in rounds)
    told = f"{floor:.2f} x floor, {fair:.2f} x with their submission"
    return [
        Measure(f"{here.name}: floor, bare tasks claimed and ended", ended, size.tasks),
        Measure("  the same with their submission", submitted + ended, size.tasks),
        Measure(
            f"  as jobs of {size.pipelines} pipelines of {size.steps} steps",
            whole,
            size.tasks,
            told,
            f"at most {TIMES_SUBMITTED:g} x with submission",
            fair <= TIMES_SUBMITTED,
            {"rounds": rounds},
        ),
    ]


def bare(here: Database, size: Size) -> tuple[float, float]:
    """The seconds to submit tasks, and to claim and end them."""
    clear(here)
    began = time.perf_counter()
    for _ in range(size.pipelines * size.steps):
        with writing(here.engine) as connection:
            submissions = [Submission(("noop",), f"acme/app{number}") for number in range(size.jobs)]
            submit(connection, submissions, database_now(connection))
    submitted = time.perf_counter()
    if work(here, size) != size.tasks:
        raise RuntimeError("not every task was done once")
    return submitted - began, time.perf_counter() - submitted


def advanced(here: Database, size: Size) -> float:
    """The seconds from the submission of the pipelines to the end of the last."""
    clear(here)
    applications = [f"acme:{number}" for number in range(size.jobs)]
    step = {"services": "noop", "applications": applications, "concurrency": min(size.jobs, 100)}
    definition = {"name": "measured", "steps": [{"name": f"step-{number}", **step} for number in range(size.steps)]}
    began = time.perf_counter()
    for _ in range(size.pipelines):
        submit_pipeline(here.engine, definition)
    done = work(here, size)
    seconds = time.perf_counter() - began
    with reading(here.engine) as connection:
        completed = connection.scalar(select(func.count()).where(pipelines.c.status == COMPLETED))
        jobs = connection.scalar(select(func.count()).where(pipeline_jobs.c.status == COMPLETED))
    if (done, completed, jobs) != (size.tasks, size.pipelines, size.tasks):
        raise RuntimeError(f"{done} tasks of {size.tasks}, {jobs} jobs and {completed} pipelines were completed")
    return seconds


def work(here: Database, size: Size) -> int:
    """Be a worker until nothing is left; how many different tasks it ended."""
    done: set[str] = set()
    while tasks := take(here.engine, size.batch):
        done.update(end(here.engine, tasks))
    return len(done)


def clear(here: Database) -> None:
    """Begin anew."""
    for name in TABLES:
        here.execute(f"DELETE FROM {name}")
    here.execute("VACUUM ANALYZE" if here.name == "postgresql" else "PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    sys.exit(main())
