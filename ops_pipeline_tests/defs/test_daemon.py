"""Dagster's daemon under its leader: what it keeps, and what it waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin
from dagster._core.remote_representation.grpc_server_registry import GrpcServerRegistry
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.controller import create_daemon_grpc_server_registry

from ops_pipeline.defs import daemon
from ops_pipeline_tests.integration.processes import PROJECT
from ops_pipeline_tests.servers import wait_until


def test_a_code_server_is_kept_while_it_lives_and_replaced_when_it_died(
    instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster started one each minute: ten minutes of a processor in each hour for nothing."""
    monkeypatch.setattr(GrpcServerRegistry, "clear_all_grpc_endpoints", GrpcServerRegistry.clear_all_grpc_endpoints)
    daemon._keep_code_servers()
    (tmp_path / "bare.py").write_text("from dagster import Definitions\ndefs = Definitions()\n")
    target = LoadableTargetOrigin(executable_path=sys.executable, python_file=str(tmp_path / "bare.py"))
    origin = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name="bare")
    with create_daemon_grpc_server_registry(instance) as registry:

        def server() -> Any:
            registry.clear_all_grpc_endpoints()
            return registry.get_grpc_server_entry(origin).process.server_process  # type: ignore[union-attr]

        first = server()
        assert server() is first
        first.kill()
        wait_until(lambda: first.poll() is not None, 20, "it to end")
        second = server()
        assert second is not first and second.poll() is None


def test_a_daemon_without_a_leader_ends_and_says_what_to_start(tmp_path: Path) -> None:
    """Its leader died while it stood by: it must not begin, and must not stay."""
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (tmp_path / "bare.py").write_text("from dagster import Definitions\ndefs = Definitions()\n")
    done = subprocess.run(
        [sys.executable, "-m", "ops_pipeline.defs.daemon", "-f", str(tmp_path / "bare.py")],
        env={"DAGSTER_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(daemon.NO_LEADER), done.stderr
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_daemon_heartbeats() == {}
