"""`make run` as an operator sees it: real daemon, real web server, both kinds of database."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.usage.tables import (
    daily_model_usage,
    hourly_model_usage,
    model_calls,
    monthly_model_usage,
    usage_days,
)
from ops_pipeline_tests.integration.processes import PROJECT, Running, command, running, wait_for
from ops_pipeline_tests.servers import PostgresServer
from ops_pipeline_tests.usage.calls import totals

ASSETS = """
{ assetNodes {
    assetKey { path }
    partitionStats { numMaterialized numFailed numPartitions }
    assetChecksOrError { ... on AssetChecks { checks {
      name executionForLatestMaterialization { status evaluation { success } } } } }
} }
"""
BACKFILL = """
mutation launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
RUNS = """
query runs($tags: [ExecutionTag!]) {
  runsOrError(filter: {tags: $tags}) { ... on Runs { results { runId status tags { key value } } } }
}
"""


def asset_states(deployment: Running) -> dict[str, dict[str, Any]]:
    return {node["assetKey"]["path"][0]: node for node in deployment.graphql(ASSETS)["assetNodes"]}


def filled(deployment: Running, names: tuple[str, ...]) -> bool:
    """True when every partition of the assets is green and every check passed."""
    states = asset_states(deployment)
    for name in names:
        stats = states[name]["partitionStats"]
        if not 0 < stats["numMaterialized"] == stats["numPartitions"]:
            return False
        checks = states[name]["assetChecksOrError"].get("checks", [])
        if not all((one["executionForLatestMaterialization"] or {}).get("status") == "SUCCEEDED" for one in checks):
            return False
    return True


def numbers(engine: Engine) -> dict[Any, tuple[Any, ...]]:
    """Calls and tokens of each hour."""
    hours = hourly_model_usage.c
    query = select(hours.hour, func.sum(hours.calls), func.sum(hours.output_tokens)).group_by(hours.hour)
    with reading(engine) as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, not yet migrated."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'ops_pipeline.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


def test_one_command_catches_up_follows_late_calls_and_goes_on_after_ctrl_c(database_url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "home").mkdir()
    engine = connect(database_url)
    names = ("hourly_model_usage", "daily_model_usage", "monthly_model_usage", "usage_report")
    with running(home, DATABASE_URL=database_url) as deployment:
        wait_for(deployment, lambda: filled(deployment, names), 400, "hours, days, months and reports to be filled")
        assert totals(engine, daily_model_usage) == totals(engine, monthly_model_usage)
        second = command(str(PROJECT / "scripts" / "run.sh"), home=home, DATABASE_URL=database_url)
        assert second.returncode == 1 and "Another start still runs" in second.stderr
        late_call_reaches_everything(deployment, engine)
        backfill_of_a_range_is_one_run(deployment)
        assert deployment.stop() < 120
    before = numbers(engine)
    with running(home, DATABASE_URL=database_url) as deployment:
        wait_for(deployment, lambda: filled(deployment, names), 300, "the second start to find everything in place")
        # An hour may have ended meanwhile.
        assert before.items() <= numbers(engine).items()
        deployment.stop()
    engine.dispose()
    log = deployment.log.read_text()
    assert "There are calls already" in log
    assert "Traceback" not in log, log


def late_call_reaches_everything(deployment: Running, engine: Engine) -> None:
    """A call of the third day changes now: its hour, its day and its month follow without a click."""
    with reading(engine) as connection:
        days = list(connection.scalars(select(usage_days.c.day).order_by(usage_days.c.day)))
        hour = connection.execute(
            select(func.min(hourly_model_usage.c.hour)).where(hourly_model_usage.c.hour > usage_hour_of(days[2]))
        ).scalar_one()
        calls = model_calls.c
        counted = (calls.called_at >= hour, calls.status == "success", calls.output_tokens > 0)
        first = select(calls.id).where(*counted).order_by(calls.called_at).limit(1)
        one = connection.execute(first).scalar_one()
    tables = (daily_model_usage, monthly_model_usage)
    wanted = [totals(engine, table)["output_tokens"] + 1000 for table in tables]
    with writing(engine) as connection:
        more = model_calls.c.output_tokens + 1000
        connection.execute(update(model_calls).where(model_calls.c.id == one).values(output_tokens=more))
    # Half a minute each on a quiet machine; the limit is for one that is not. Revisions would tell too early: an hour
    # that ends meanwhile has one.
    for table, sum_ in zip(tables, wanted, strict=True):
        follows = lambda t=table, w=sum_: totals(engine, t)["output_tokens"] == w  # noqa: E731
        wait_for(deployment, follows, 300, f"{table.name} to follow")


def usage_hour_of(day: Any) -> Any:
    from ops_pipeline.usage.hours import day_start

    return day_start(day)


def backfill_of_a_range_is_one_run(deployment: Running) -> None:
    """What the UI's "Materialize" dialog sends for a range of partitions."""
    keys = deployment.graphql(
        '{ assetNodeOrError(assetKey: {path: ["hourly_model_usage"]}) { ... on AssetNode { partitionKeys } } }'
    )["assetNodeOrError"]["partitionKeys"][10:60]
    answer = deployment.graphql(
        BACKFILL, {"params": {"assetSelection": [{"path": ["hourly_model_usage"]}], "partitionNames": keys}}
    )["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    tags = [{"key": "dagster/backfill", "value": answer["backfillId"]}]

    def runs() -> list[dict[str, Any]]:
        return deployment.graphql(RUNS, {"tags": tags})["runsOrError"]["results"]

    done = "the backfill's run to succeed"
    wait_for(deployment, lambda: any(one["status"] in {"SUCCESS", "FAILURE"} for one in runs()), 300, done)
    assert [one["status"] for one in runs()] == ["SUCCESS"]


def test_a_taken_port_ends_the_start_with_a_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = command(str(PROJECT / "scripts" / "serve.sh"), home=tmp_path / "home", PORT=port)
    assert result.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in result.stderr and "PORT=" in result.stderr


def test_a_wrong_database_ends_the_start_with_a_reason_and_without_its_password(tmp_path: Path) -> None:
    result = command("ops-pipeline", "migrate", home=tmp_path / "home", DATABASE_URL="postgresql://u:pw@127.0.0.1:1/x")
    assert result.returncode == 1
    assert "Check that the server runs" in result.stderr and "pw" not in result.stderr.replace("***", "")
