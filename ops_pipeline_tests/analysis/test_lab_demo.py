"""The demonstration of the analysis lab: nothing of it where there is real data, all of it once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from sqlalchemy import Engine, func, select

from ops_pipeline.analysis import demo
from ops_pipeline.analysis.client import check_health
from ops_pipeline.analysis.demo_leftovers import write_leftovers
from ops_pipeline.analysis.maintenance.applications import Policy
from ops_pipeline.analysis.maintenance.archive_tasks import archive_old_tasks
from ops_pipeline.analysis.maintenance.clean_applications import clean_orphan_applications
from ops_pipeline.analysis.maintenance.end_tasks import cancel_orphan_tasks, end_stuck_tasks
from ops_pipeline.analysis.maintenance.lab import Lab
from ops_pipeline.analysis.maintenance.tasks import TaskPolicy
from ops_pipeline.analysis.policy import Policy as QueuePolicy
from ops_pipeline.analysis.recovery.due import count_due
from ops_pipeline.analysis.tables import analysis_tasks, generated_applications
from ops_pipeline.analysis.targets import parse_target
from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.migrate import migrate
from ops_pipeline.passes import Options
from ops_pipeline_tests.analysis.queueing import take
from ops_pipeline_tests.analysis.working import add_task, plan_for, working
from ops_pipeline_tests.integration.processes import BIN, alive, environment
from ops_pipeline_tests.servers import wait_until


def statuses(engine: Engine) -> dict[str, int]:
    query = select(analysis_tasks.c.status, func.count()).group_by(analysis_tasks.c.status)
    with reading(engine) as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def test_everything_of_it_is_known_as_its_own(engine: Engine) -> None:
    assert not demo.has_real_tasks(engine)
    assert demo.submit(engine) == 11
    assert not demo.has_real_tasks(engine)
    assert demo.submit(engine) == sum(statuses(engine).values())
    with reading(engine) as connection:
        for target in connection.scalars(select(analysis_tasks.c.target)):
            parse_target(target)


def test_a_task_or_an_application_of_ones_own_is_real_data(engine: Engine, tmp_path: Path) -> None:
    add_task(engine, "demo_1")
    assert not demo.has_real_tasks(engine)
    with writing(engine) as connection:
        connection.execute(generated_applications.insert().values(id="a", model_slug="m", app_number=0))
    assert demo.has_real_tasks(engine)
    assert demo.has_real_tasks(connect(f"sqlite:///{tmp_path / 'not_migrated.db'}"))


def test_the_tasks_of_the_demonstration_are_done_by_its_analyzer(sqlite_engine: Engine, tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    demo.write_applications(apps)
    demo.write_applications(apps)
    server, told = demo.start(tmp_path, apps)
    assert server, told
    try:
        assert asyncio.run(check_health(server.url)).tools == ("bandit", "ruff")
        demo.submit(sqlite_engine)
        with working(sqlite_engine, plan_for(tmp_path, server.url, linger=30.0)):
            wait_until(lambda: statuses(sqlite_engine) == {"completed": 21, "failed": 2}, 60, "all tasks to end")
    finally:
        server.stop()


def lab(home: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    """A command within the demonstration."""
    command = [str(BIN / "ops-pipeline"), "with-demo-analyzer", sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment(home, **variables), stdout=subprocess.PIPE, text=True, cwd=home)


def migrated(home: Path) -> None:
    home.mkdir()
    engine = connect(f"sqlite:///{home / 'ops_pipeline.db'}")
    migrate(engine)
    engine.dispose()


def test_the_command_hands_the_analyzer_over_and_it_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    migrated(home)
    process = lab(
        home,
        "import os; print(os.environ['ANALYZER_URLS'], os.environ['GENERATED_APPS_DIR'], flush=True)\nwhile True: pass",
    )
    assert process.stdout is not None
    assert "the static analyzer that comes with the project answers at ws://127.0.0.1:" in process.stdout.readline()
    assert process.stdout.readline().startswith("There is something to clean up")
    urls, apps = process.stdout.readline().split()
    assert urls.startswith("static-analyzer=ws://127.0.0.1:")
    assert Path(apps) == home / "demo_apps"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(alive(child) for child in children), 20, "the analyzer to end")


def test_where_applications_are_named_there_is_no_demonstration(tmp_path: Path) -> None:
    home = tmp_path / "home"
    migrated(home)
    process = lab(home, "import os; print(os.environ.get('ANALYZER_URLS'))", GENERATED_APPS_DIR=str(tmp_path))
    told, _ = process.communicate(timeout=60)
    assert told.splitlines() == ["There are applications or data of your own: no demo of the analysis lab.", "None"]


def test_each_pass_of_maintenance_has_something_to_plan(engine: Engine, tmp_path: Path) -> None:
    demo.write_applications(tmp_path / "apps")
    demo.submit(engine)
    assert write_leftovers(engine) == 16
    assert write_leftovers(engine) == 0
    assert not demo.has_real_tasks(engine)
    lab, options = Lab(engine, str(tmp_path / "apps"), tmp_path, str(tmp_path)), Options(dry_run=True)
    applications = clean_orphan_applications(lab, Policy(timedelta(days=7)), options)
    orphans, stuck = cancel_orphan_tasks(lab, TaskPolicy(), options), end_stuck_tasks(lab, TaskPolicy(), options)
    old = archive_old_tasks(lab, timedelta(days=30), options)
    assert [report.status for report in (applications, orphans, stuck, old)] == ["success"] * 4
    assert sorted(change.action for change in applications.changes) == ["delete", "mark missing"]
    assert [change.key for change in orphans.changes] == ["demo_left_orphan (meta_llama-3.1-70b/app30)"]
    assert [change.key for change in stuck.changes] == ["demo_left_stuck (openai_gpt-4o/app0)"]
    assert (old.planned, old.kept) == (3, {"under legal hold": 1})


def test_no_worker_and_no_recovery_takes_what_is_there_to_be_cleaned_up(sqlite_engine: Engine) -> None:
    write_leftovers(sqlite_engine)
    assert not any(count_due(sqlite_engine, QueuePolicy()).values())
    assert take(sqlite_engine, now=datetime.now(UTC), services=[demo.SERVICE]) == []
