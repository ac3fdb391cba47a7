"""What `ops-pipeline check` finds out about the tables of calls and usage."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from ops_pipeline.checking import Check
from ops_pipeline.database.engine import connect, reading
from ops_pipeline.usage.checks import check_usage
from ops_pipeline.usage.hours import HOUR
from ops_pipeline_tests.servers import PostgresServer
from ops_pipeline_tests.usage.calls import NOON, call, contents, execute, run, write


def test_rights_are_tried_without_a_trace(engine: Engine) -> None:
    write(engine, call(NOON))
    run(engine, NOON)
    before = contents(engine)
    assert check_usage(engine, NOON) == [
        Check("tables", ok=True, detail="can be read and written"),
        Check("model_calls", ok=True, detail="the first call lies in the hour 2026-03-10 12:00"),
    ]
    assert contents(engine) == before


def test_calls_before_the_start_are_told(engine: Engine) -> None:
    write(engine, call(NOON))
    (_, found) = check_usage(engine, NOON + HOUR)
    assert found.ok
    assert found.warning
    assert "before MODEL_CALL_STATS_START (2026-03-10 13:00): earlier hours are not metered" in found.detail


@pytest.mark.parametrize("missing", ["INSERT ON hourly_model_usage", "DELETE ON usage_hours", "UPDATE ON model_calls"])
def test_a_role_that_lacks_one_right_is_told(
    postgres_engine: Engine, postgres_server: PostgresServer, missing: str
) -> None:
    """A role that may only read passed the check, and the first run at night failed."""
    name = f"lacks_{missing.partition(' ')[0].lower()}"
    postgres_server.execute(f"CREATE ROLE {name} LOGIN")
    execute(postgres_engine, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
    execute(postgres_engine, f"REVOKE {missing} FROM {name}")
    url = postgres_engine.url.set(username=name).render_as_string(hide_password=False)
    role = connect(url)
    with reading(role):
        (found,) = check_usage(role, NOON)
    role.dispose()
    assert not found.ok
    assert f"permission denied for table {missing.rpartition(' ')[2]}" in found.detail
    assert "Grant the role in DATABASE_URL its rights" in found.detail


def test_a_database_that_is_read_only_is_told(sqlite_engine: Engine) -> None:
    readonly = connect(f"sqlite:///file:{sqlite_engine.url.database}?mode=ro&uri=true")
    (found,) = check_usage(readonly, NOON)
    readonly.dispose()
    assert not found.ok
    assert "attempt to write a readonly database" in found.detail
