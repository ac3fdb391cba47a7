"""The units of systemd: as systemd reads them, hardened, and with commands that work in the order of the units."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment

FOLDER = PROJECT / "deploy" / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
INSTALLED = "/opt/ops_pipeline"
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "@system-service",
    "User": "ops_pipeline",
    "StateDirectory": "ops_pipeline",
    "EnvironmentFile": "/etc/ops_pipeline/environment",
}


def options(unit: str) -> dict[str, list[str]]:
    """What stands in [Service], which may name one thing several times."""
    section = (FOLDER / unit).read_text().partition("[Service]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = defaultdict(list)
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def commands(unit: str) -> list[list[str]]:
    """What it starts, as it would be here."""
    given = options(unit)
    lines = given["ExecStartPre"] + given["ExecStart"]
    return [
        shlex.split(line.replace(f"{INSTALLED}/.venv/bin", str(BIN)).replace(INSTALLED, str(PROJECT))) for line in lines
    ]


def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    """It starts a unit with an unknown option all the same, without what was meant by it."""
    for unit in FOLDER.glob("ops-pipeline*"):
        text = unit.read_text().replace(f"{INSTALLED}/.venv/bin", str(BIN)).replace(INSTALLED, str(PROJECT))
        (tmp_path / unit.name).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("ops-pipeline*"))]
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr, found.returncode) == ("", "", 0)
    (tmp_path / SERVICES[0]).write_text((tmp_path / SERVICES[0]).read_text().replace("PrivateTmp", "PrivatTmp"))
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert "Unknown key 'PrivatTmp'" in found.stderr, "systemd-analyze looks at nothing here"


@pytest.mark.parametrize("unit", SERVICES)
def test_each_service_may_do_little_beside_its_work(unit: str) -> None:
    given = options(unit)
    assert {name: given[name][0] for name in HARDENED if given[name]} == HARDENED
    assert given["EnvironmentFile"][1:] == (
        ["-/etc/ops_pipeline/migrator.environment"] if unit == "ops-pipeline-migrate.service" else []
    )


def test_the_target_starts_all_and_each_waits_for_the_migration() -> None:
    target = configparser.ConfigParser(interpolation=None)
    target.read(FOLDER / "ops-pipeline.target")
    assert sorted(target["Unit"]["Wants"].split()) == SERVICES
    for unit in set(SERVICES) - {"ops-pipeline-migrate.service"}:
        text = (FOLDER / unit).read_text()
        before = "migrate" if "prepare" in unit else "prepare"
        assert f"Requires=ops-pipeline-{before}.service\n" in text
        assert re.search(rf"^After=.* ops-pipeline-{before}\.service$", text, re.MULTILINE)
    readme = (FOLDER / "README.md").read_text()
    assert [unit for unit in SERVICES if f"`{unit}`" not in readme] == []


def test_nothing_that_the_units_start_listens_beyond_this_machine() -> None:
    for unit in SERVICES:
        for command in commands(unit):
            if "--port" in command:
                assert command[command.index("--host") + 1] == "127.0.0.1"
    nginx = (PROJECT / "deploy" / "nginx" / "ops-pipeline.conf").read_text()
    ports = {
        command[command.index("--port") + 1] for unit in SERVICES for command in commands(unit) if "--port" in command
    }
    assert ports == set(re.findall(r"127\.0\.0\.1:(\d+)", nginx)) == {"3000", "3001", "9464"}


def test_a_new_machine_is_prepared_by_the_commands_of_the_units(tmp_path: Path) -> None:
    home = tmp_path / "home"
    order = ["migrate", "prepare", "daemon"]
    for unit in order:
        for command in commands(f"ops-pipeline-{unit}.service"):
            if "daemon" in command:
                continue
            done = subprocess.run(
                command, env=environment(home), cwd=PROJECT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert (home / "ops_pipeline.db").exists()
    assert (home / "dagster.yaml").exists()
    assert (home / "history" / "runs.db").exists() or (home / "history" / "runs" / "index.db").exists()
