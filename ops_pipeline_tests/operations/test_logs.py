"""Lines of the log: one per event, for machines or for people, with details of the domains that are asked for."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from ops_pipeline.log_fields import MOST_CHANGES, fields, tell_changes
from ops_pipeline.operations.logs import OURS, Terminal, hidden_texts, tell_on_terminal
from ops_pipeline.operations.outcomes import record_outcome
from ops_pipeline.reconcile import Change, Outcome
from ops_pipeline.settings import SettingsError, load_settings
from ops_pipeline.variables.logs import LOGGERS_OF_CATEGORIES

SECRET = 'geh"eim\\1'


@contextmanager
def told(**settings: Any) -> Iterator[io.StringIO]:
    """What is written to standard error meanwhile; our loggers are as before afterwards."""
    names = [OURS, *(name for some in LOGGERS_OF_CATEGORIES.values() for name in some)]
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger(OURS).handlers)
    elsewhere = settings.pop("elsewhere", lambda: False)
    output = io.StringIO()
    try:
        with redirect_stderr(output):
            tell_on_terminal(load_settings(**settings), elsewhere)
            yield output
    finally:
        logging.getLogger(OURS).handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def fail(log: logging.Logger, why: str) -> None:
    """Log an exception."""
    error = ValueError(why)
    log.error("It failed.", exc_info=error)


def test_a_line_is_an_object_with_what_happened_to_what_and_why() -> None:
    with told(log_format="json") as output:
        log = logging.getLogger("ops_pipeline.hypervisor.machines.sync")
        log.info("vm-1: %s", "stopped", extra=fields(host="h1", reason="naïve", duration_seconds=0.25))
        fail(log, "two\nlines")
    first, second = map(json.loads, output.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "info",
        "logger": "ops_pipeline.hypervisor.machines.sync",
        "message": "vm-1: stopped",
        "host": "h1",
        "reason": "naïve",
        "duration_seconds": 0.25,
    }
    assert second["level"] == "error"
    assert second["exception"].endswith("ValueError: two\nlines")


def test_a_line_for_people_has_time_level_job_run_and_words() -> None:
    with told() as output:
        logging.getLogger("ops_pipeline.usage").warning("Words.", extra=fields(job="a_job", run="0123456789"))
    date, time, rest = output.getvalue().split(" ", 2)
    assert datetime.fromisoformat(f"{date} {time}").utcoffset() is not None
    assert rest == "WARNING a_job 01234567 Words.\n"


@pytest.mark.parametrize("category", LOGGERS_OF_CATEGORIES)
def test_a_category_turns_on_details_of_its_domain_only(category: str) -> None:
    with told(debug_categories=category) as output:
        for names in LOGGERS_OF_CATEGORIES.values():
            for name in names:
                logging.getLogger(f"{name}.module").debug("%s", name)
    assert [line.split()[-1] for line in output.getvalue().splitlines()] == list(LOGGERS_OF_CATEGORIES[category])


def test_without_a_category_no_detail_is_told() -> None:
    with told(debug_categories="usage,services"):
        pass
    with told() as output:
        logging.getLogger("ops_pipeline.usage.stale").debug("a detail")
        logging.getLogger("ops_pipeline.usage.stale").info("an event")
    assert "a detail" not in output.getvalue()
    assert "an event" in output.getvalue()


def test_an_unknown_category_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_CATEGORIES", "usage, vms")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == (
        "DEBUG_CATEGORIES: 'vms' is no category; there are usage, vm-status, graphics, services, firewall,"
        " checkpoints, analysis, maintenance"
    )


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_FORMAT", "xml")
    with pytest.raises(SettingsError, match="LOG_FORMAT: Input should be 'text' or 'json'"):
        load_settings()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_in_a_line(log_format: str) -> None:
    """An exception of a driver held the URL with which it could not connect."""
    given = {
        "database_url": "postgresql+psycopg://ops:p%40ssword@db/ops",
        "nautobot_redis_password": SECRET,
        "alert_webhook_url": "https://hooks.example/T0/verysecret",
    }
    with told(log_format=log_format, **given) as output:
        log = logging.getLogger("ops_pipeline.operations")
        log.error("No: %s", "p@ssword", extra=fields(reason=SECRET, url="https://hooks.example/T0/verysecret"))
        fail(log, f"{SECRET} p%40ssword")
    lines = output.getvalue()
    assert "***" in lines
    for secret in ("ssword", SECRET, json.dumps(SECRET)[1:-1], "verysecret"):
        assert secret not in lines


def test_a_password_that_is_hardly_one_hides_nothing_else() -> None:
    assert hidden_texts(load_settings(nautobot_redis_password="1")) == ()


def test_it_may_be_set_up_again_and_leaves_other_loggers_alone() -> None:
    """Root got a handler, and every line of every library was written twice."""
    root = (logging.getLogger().handlers[:], logging.getLogger().level)
    with told(), told() as output:
        logging.getLogger("ops_pipeline.usage").info("once")
        assert sum(isinstance(one, Terminal) for one in logging.getLogger(OURS).handlers) == 1
        assert (logging.getLogger().handlers, logging.getLogger().level) == root
    assert output.getvalue().count("once") == 1


def test_what_somebody_else_tells_is_not_told_twice() -> None:
    with told(elsewhere=lambda: True) as output:
        logging.getLogger("ops_pipeline.usage").info("a line of a run")
    assert output.getvalue() == ""


def test_a_terminal_that_is_gone_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with told():
        monkeypatch.setattr(sys, "stderr", None)
        logging.getLogger("ops_pipeline.usage").info("nobody reads this")


def test_each_outcome_is_one_event_with_its_counts(engine: Engine) -> None:
    outcome = Outcome(scanned=10, changed=4, skipped=1, failed=2, reasons={"rare": 1, "often": 3})
    with told(log_format="json") as output:
        record_outcome(engine, job="j", run_id="r", started_at=datetime.now(UTC), outcome=outcome, details={"x": "y"})
    (line,) = map(json.loads, output.getvalue().splitlines())
    assert 0 <= line.pop("duration_seconds") < 60
    assert line.pop("time")
    assert line == {
        "level": "warning",
        "logger": "ops_pipeline.operations.outcomes",
        "message": line["message"],
        "event": "outcome",
        "job": "j",
        "run": "r",
        "status": "failed",
        "scanned": 10,
        "changed": 4,
        "skipped": 1,
        "failed": 2,
        "reasons": {"often": 3, "rare": 1},
    }
    assert line["message"].startswith("Outcome: failed, 10 scanned, 4 changed, 1 skipped, 2 failed in ")


def test_a_million_changes_do_not_fill_the_log() -> None:
    with told(debug_categories="usage", log_format="json") as output:
        log = logging.getLogger("ops_pipeline.usage.somewhere")
        tell_changes(log, (Change(f"call {number}", "fail", "it is stale", "processing") for number in range(10**6)))
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert len(lines) == MOST_CHANGES
    assert lines[0]["message"] == "call 0: fail, because it is stale"
    assert {name: lines[0][name] for name in ("object", "action", "before", "reason")} == {
        "object": "call 0",
        "action": "fail",
        "before": "processing",
        "reason": "it is stale",
    }
