"""Two deployments that share an operations database never run the same job at once."""

from __future__ import annotations

import threading

import pytest
from dagster import DagsterInstance
from sqlalchemy import Engine

from ops_pipeline.database.engine import connect
from ops_pipeline.database.locks import exclusive
from ops_pipeline.defs import resources
from ops_pipeline_tests.defs.deployment import deployment

JOB = "cleanup_stale_model_calls"


def test_a_job_waits_for_the_same_job_of_another_deployment(engine: Engine) -> None:
    """The limits of Dagster's queue hold within one deployment only."""
    elsewhere = connect(engine.url.render_as_string(hide_password=False))
    done = threading.Event()
    with DagsterInstance.ephemeral() as instance:
        here = deployment(engine, instance)

        def run() -> None:
            assert here.run_job(JOB).success
            done.set()

        with exclusive(elsewhere, JOB, wait_seconds=0):
            thread = threading.Thread(target=run)
            thread.start()
            assert not done.wait(4)
        thread.join(60)
    assert done.is_set()
    elsewhere.dispose()


def test_a_job_that_waited_in_vain_fails_with_a_reason(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "LONGEST_WAIT_SECONDS", 0.1)
    elsewhere = connect(engine.url.render_as_string(hide_password=False))
    with DagsterInstance.ephemeral() as instance, exclusive(elsewhere, JOB, wait_seconds=0):
        result = deployment(engine, instance).run_job(JOB)
    assert not result.success
    assert any("is running elsewhere" in str(event) for event in result.all_events)
    elsewhere.dispose()


def test_another_job_does_not_wait(engine: Engine) -> None:
    elsewhere = connect(engine.url.render_as_string(hide_password=False))
    with DagsterInstance.ephemeral() as instance, exclusive(elsewhere, "flush_firewall", wait_seconds=0):
        assert deployment(engine, instance).run_job(JOB).success
    elsewhere.dispose()
