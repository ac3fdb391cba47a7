"""The daemon is told to end in the middle of a tick."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from dagster import DagsterInstance
from dagster._core.scheduler.instigation import TickStatus

from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment
from ops_pipeline_tests.servers import wait_until

SLOW = """
import time
from pathlib import Path
from dagster import DefaultSensorStatus, Definitions, SkipReason, job, op, sensor

@op
def nothing(): ...

@job
def none(): nothing()

def slow():
    Path("FOLDER/ticking").touch()
    time.sleep(4)
    return SkipReason("nothing to do")

# More than the daemon looks at together: some wait for their turn.
slow_ones = [
    sensor(job=none, name=f"slow_{number}_sensor", minimum_interval_seconds=1,
           default_status=DefaultSensorStatus.RUNNING)(lambda _: slow())
    for number in range(7)
]
defs = Definitions(jobs=[none], sensors=slow_ones)
"""


def test_a_tick_under_way_ends_before_the_daemon_and_none_fails(tmp_path: Path) -> None:
    """Its location was gone before it: a failed tick, and an alert, at each restart."""
    (tmp_path / "slow.py").write_text(SLOW.replace("FOLDER", str(tmp_path)))
    (tmp_path / "workspace.yaml").write_text(f"load_from: [{{python_file: {tmp_path / 'slow.py'}}}]")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([BIN / "ops-pipeline", "migrate"], cwd=PROJECT, env=environment(home), check=True)
    command = [BIN / "ops-pipeline", "with-home", BIN / "ops-pipeline", "daemon", "--log-level", "warning"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--workspace", tmp_path / "workspace.yaml"],
            cwd=PROJECT,
            env=environment(home),
            stdout=file,
            stderr=file,
        )
    try:
        wait_until((tmp_path / "ticking").exists, 90, "a tick to begin")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    with DagsterInstance.from_config(str(home)) as instance:
        states = instance.all_instigator_state()
        ticks = [tick for state in states for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)]
    assert {tick.status for tick in ticks} == {TickStatus.SKIPPED}
    assert "Traceback" not in log.read_text(), log.read_text()
