"""Each command of the page about controls, run as it stands there, and what it did."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus
from sqlalchemy import Engine, text

from ops_pipeline.database.engine import connect, reading, sqlite_url
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain
from ops_pipeline_tests.hypervisor.scenes import add_machines, fleet, statuses
from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment
from ops_pipeline_tests.servers import wait_until

pytestmark = pytest.mark.xdist_group("controls")
PAGE = (PROJECT / "docs" / "controls.md").read_text()
ROWS = {cells[1].strip(): cells[-2] for line in PAGE.splitlines() if len(cells := line.split("|")) == 5}
"""The last column of the table, by the first."""
JOB, SCHEDULE = "update_vm_status", "update_vm_status_schedule"
OFF = 5


def command_of(control: str, number: int = 0) -> str:
    """A command of a row of the page."""
    return [code for code in re.findall(r"`([^`]+)`", ROWS[control]) if code.startswith("ops-pipeline ")][number]


@dataclass(frozen=True)
class Shell:
    """The shell of an operator, prepared as the page says."""

    home: Path
    engine: Engine

    def run(self, command: str) -> str:
        """Run a command that must succeed; what it prints."""
        words = ["bash", "-c", command]
        done = subprocess.run(words, env=self.variables(), cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def variables(self) -> dict[str, str]:
        """Its environment."""
        given = environment(self.home, LIBVIRT_URI=f"test://{self.home}/fleet.xml")
        return {**given, "PATH": f"{BIN}:/usr/bin:/bin", "MODEL_CALL_STATS_START": "2026-09-01T10:00Z"}

    def runs(self) -> dict[str, DagsterRunStatus]:
        """The newest run of each job."""
        with DagsterInstance.from_config(str(self.home)) as instance:
            return {run.job_name: run.status for run in reversed(instance.get_runs())}

    def is_on(self, name: str) -> bool:
        """Whether a schedule or sensor is switched on."""
        with DagsterInstance.from_config(str(self.home)) as instance:
            (state,) = [state for state in instance.all_instigator_state() if state.instigator_name == name]
            return state.is_running


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A deployment with a machine that runs for the platform, and is off on its host."""
    home = tmp_path_factory.mktemp("controls") / "home"
    home.mkdir()
    fleet(home / "fleet.xml", [TestDomain("a", OFF)])
    engine = connect(sqlite_url(home))
    migrate(engine)
    add_machines(engine, {"id": "a", "status": "running"})
    there = Shell(home, engine)
    # As the page says, this prepares the folder; whichever test comes first.
    there.run("ops-pipeline with-home true")
    yield there
    engine.dispose()


def test_schedules_and_sensors_are_stopped_started_and_listed(shell: Shell) -> None:
    start = command_of("start")
    shell.run(command_of("stop"))
    assert not shell.is_on(SCHEDULE)
    shell.run(start)
    assert shell.is_on(SCHEDULE)
    assert f"Schedule: {SCHEDULE} [RUNNING]" in shell.run(command_of("is it running?"))
    maintenance = start.replace("schedule start", "sensor start").replace(SCHEDULE, "maintenance_sensor")
    shell.run(maintenance)
    assert shell.is_on("maintenance_sensor")


def test_a_job_is_tried_run_here_queued_and_seen(shell: Shell) -> None:
    here = command_of("run now, here, and wait")
    config = shell.home / "run.yaml"
    option, content = re.findall(r"`([^`]+)`", ROWS["try what it would do"])
    config.write_text(content)
    shell.run(f"{here} {option.replace('run.yaml', str(config))}")
    assert statuses(shell.engine) == {"a": "running"}
    shell.run(here)
    assert statuses(shell.engine) == {"a": "stopped"}
    shell.run(command_of("run now"))
    # Without a daemon it waits in the queue.
    assert shell.runs()[JOB] == DagsterRunStatus.QUEUED
    assert shell.run(command_of("last runs")).count(f"Job: {JOB}") == 3
    (job,) = [
        one
        for one in json.loads(shell.run(f"{command_of('health').partition(' [')[0]} --json"))["jobs"]
        if one["name"] == JOB
    ]
    assert (job["running"], job["errors"], job["success_rate"]) == (True, 0, 1.0)
    with reading(shell.engine) as connection:
        assert connection.execute(text(re.findall(r"`(SELECT[^`]+)`", ROWS["last runs"])[0])).first().job == JOB


def test_hours_are_made_again_by_hand(shell: Shell) -> None:
    shell.run(command_of("manual sync of hours"))
    with reading(shell.engine) as connection:
        hours = connection.execute(text("SELECT count(*) FROM usage_hours")).scalar()
    with DagsterInstance.from_config(str(shell.home)) as instance:
        green = instance.get_materialized_partitions(AssetKey("hourly_model_usage"))
        runs = [run for run in instance.get_runs() if AssetKey("hourly_model_usage") in (run.asset_selection or ())]
    assert (hours, green, len(runs)) == (2, {"2026-09-01-10:00", "2026-09-01-11:00"}, 1)


def test_monitors_are_answered(shell: Shell) -> None:
    process = subprocess.Popen(
        [*command_of("health", 1).split(), "--port", "0"],
        env=shell.variables(), cwd=PROJECT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        url = process.stdout.readline().split()[1].removesuffix("/metrics,")
        assert httpx.get(f"{url}/livez").status_code == 200
        assert JOB in {one["name"] for one in httpx.get(f"{url}/health").json()["jobs"]}
        # No daemon works here.
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert 'ops_pipeline_up{domain="jobs"} 1.0' in httpx.get(f"{url}/metrics").text
    finally:
        process.terminate()
        wait_until(lambda: process.poll() is not None, 30, "the server to end")
    assert process.returncode == 0


def test_no_command_of_the_page_is_left_out() -> None:
    tried = {
        "start",
        "stop",
        "is it running?",
        "run now",
        "run now, here, and wait",
        "manual sync of hours",
        "health",
        "last runs",
    }
    assert {name for name, cell in ROWS.items() if "`ops-pipeline " in cell} == tried
