"""Calls for the usage benchmark: millions of rows of `model_calls`, made inside the database.

A sample of calls is drawn with numpy and loaded into a temporary table; the database then deals the sample out over
the days, in time order, with busy noons and quiet nights. Both databases get the same calls.

What belongs here: what the calls look like, and loading them fast.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, insert, select, text

from benchmarks.databases import Database
from ops_pipeline.database.engine import reading
from ops_pipeline.database.expressions import earliest_hour, latest
from ops_pipeline.usage.demo_catalogue import MODELS, Model
from ops_pipeline.usage.tables import model_calls

START = datetime(2025, 6, 1, tzinfo=UTC)
"""A month of 30 days that is over on any machine, so that its hours are partitions and its days are closed."""
USERS = 2_000
FAVOURITES = 3
"""How many pairs of app and model a user calls; with `ACTIVITY`, 5 million calls make 1.33 million hourly rows."""
ACTIVITY = 1.12
APPS = 14
SAMPLE = 2**17
"""Calls drawn; the same ones come back after most of a day, which changes nothing about counts and buckets."""
SPREAD = 0.6
"""Sigma of the log-normal timings: a model's hour then fills 60 to 100 histogram buckets."""
DAY_AND_NIGHT = 0.45
"""Noon is 2.6 times as busy as midnight, and the busiest hour 1.8 times the average one."""
FAILED, STREAMED, CACHED = 0.03, 0.9, 0.35
BATCH = 250_000

_DEALT = ("id", "called_at", "created_at", "updated_at", "request_id", "trace_id")
_SAMPLED = [column for column in model_calls.columns if column.name not in _DEALT]


def load(database: Database, calls: int, days: int) -> None:
    """Fill `model_calls`, unless it holds just that already.

    Args:
        database: where.
        calls: how many.
        days: over how many days from `START` on.
    """
    if _is_loaded(database.engine, calls, days):
        return
    database.execute("DELETE FROM model_calls" if database.name == "sqlite" else "TRUNCATE model_calls")
    sample = Table(
        "sampled_calls",
        MetaData(),
        Column("number", Integer, primary_key=True, autoincrement=False),
        *(Column(column.name, column.type) for column in _SAMPLED),
        prefixes=["TEMPORARY"],
    )
    with database.engine.connect() as connection:
        sample.create(connection)
        connection.execute(insert(sample), sampled_calls())
        connection.execute(text("ANALYZE sampled_calls" if database.name == "postgresql" else "SELECT 1"))
        connection.commit()
        triggers = _without_triggers(connection)
        for first in range(0, calls, BATCH):
            numbers = {"first": first, "beyond": min(first + BATCH, calls), "calls": calls, "days": days}
            connection.execute(text(_deal(database.name)), numbers)
            connection.commit()
        for statement in triggers:
            connection.execute(text(statement))
        connection.commit()
        sample.drop(connection)
        connection.commit()
    database.execute("VACUUM (ANALYZE) model_calls" if database.name == "postgresql" else "ANALYZE")
    database.settle()


def _is_loaded(engine: Engine, calls: int, days: int) -> bool:
    called = model_calls.c.called_at
    with reading(engine) as connection:
        first, last = connection.execute(select(earliest_hour(called), latest(called))).one()
        there = connection.scalar(text("SELECT COUNT(*) FROM model_calls"))
    end = START + timedelta(days=days)
    return there == calls and first == START and end - timedelta(hours=1) <= last < end


def sampled_calls(seed: int = 1) -> list[dict[str, Any]]:
    """Draw the sample: calls without an id or a time, in random order."""
    rng = np.random.default_rng(seed)
    activity = (3.0 + np.arange(USERS)) ** -ACTIVITY
    users = rng.choice(USERS, SAMPLE, p=activity / activity.sum())
    favourite_weights = 1.0 / (1.0 + np.arange(FAVOURITES))
    favourites = rng.choice(FAVOURITES, SAMPLE, p=favourite_weights / favourite_weights.sum())
    apps = rng.integers(APPS, size=(USERS, FAVOURITES))[users, favourites]
    models = _favourite_models(rng)[users, favourites]
    timings, amounts, luck = (
        rng.lognormal(0, SPREAD, (2, SAMPLE)),
        rng.lognormal(0, 0.8, SAMPLE),
        rng.random((3, SAMPLE)),
    )
    called = (MODELS[which] for which in models.tolist())
    dice = zip(timings.T.tolist(), luck.T.tolist(), strict=True)
    columns = (users.tolist(), apps.tolist(), called, amounts.tolist(), dice)
    return [{"number": number} | _call(*drawn) for number, drawn in enumerate(zip(*columns, strict=True))]


def _favourite_models(rng: np.random.Generator) -> np.ndarray:
    """Each user's models, all different: the popular ones are in most users' choice."""
    popularity = 1.0 / (2.0 + np.arange(20))
    # The largest of these keys are a weighted draw without repetition (Efraimidis and Spirakis).
    keys = rng.random((USERS, 20)) ** (1.0 / popularity)
    return np.argsort(-keys, axis=1)[:, :FAVOURITES]


def _call(user: int, app: int, model: Model, amount: float, dice: tuple[list[float], list[float]]) -> dict[str, Any]:
    timings, luck = dice
    failed, streamed, cached = luck[0] < FAILED, luck[1] < STREAMED, luck[2] < CACHED
    tokens = [round(typical * amount) for typical in model.typical[:4]]
    tokens[2] *= cached
    seconds, media = model.seconds * timings[0], model.typical[5] * amount
    ttfb = min(model.ttfb_ms * timings[1], seconds * 1000)
    used = (*tokens, model.typical[4], Decimal(round(media * 1000)).scaleb(-3))
    paid = sum((price * Decimal(number) for price, number in zip(model.prices, used, strict=True)), Decimal(0))
    return {
        "user_id": f"user-{user * 7919 % 10**10:010d}",
        "app_id": f"app-{app:02d}",
        "provider": model.provider,
        "model": model.name,
        "type": model.type,
        "credential_id": f"{model.provider}-{app % 3}",
        "status": "failed" if failed else "success",
        "duration_seconds": round(seconds, 3),
        "ttfb_ms": round(ttfb, 1) if ttfb and streamed else None,
        "input_tokens": tokens[0],
        "output_tokens": 0 if failed else tokens[1],
        "cache_read_tokens": tokens[2],
        "cache_write_tokens": tokens[3],
        "reasoning_tokens": tokens[1] // 2 if model.reasons and not failed else 0,
        "images": 0 if failed else model.typical[4],
        "media_seconds": 0.0 if failed else round(media, 3),
        "credits": Decimal(0) if failed else paid,
        "error_reason": "503 Model Unavailable: the model is overloaded" if failed else None,
    }


def _without_triggers(connection: Connection) -> list[str]:
    """Switch off the triggers on `model_calls`; returns the statements that bring them back."""
    if connection.dialect.name == "postgresql":
        # The sample is joined in one pass: a second batch on disk would break the time order.
        connection.execute(text("SET work_mem = '256MB'"))
        connection.execute(text("ALTER TABLE model_calls DISABLE TRIGGER USER"))
        connection.commit()
        return ["ALTER TABLE model_calls ENABLE TRIGGER USER", "RESET work_mem"]
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'model_calls'"
    triggers = connection.execute(text(query)).all()
    for name, _ in triggers:
        connection.execute(text(f"DROP TRIGGER {name}"))
    connection.commit()
    # Colons would be read as parameters.
    return [statement.replace(":", "\\:") for _, statement in triggers]


def _deal(name: str) -> str:
    """The INSERT of the calls from :first up to :beyond, for a database."""
    sampled = ", ".join(column.name for column in _SAMPLED)
    # Time runs slower at noon than at midnight: the same numbers of calls then fall into fewer seconds.
    share = "(CAST(n AS DOUBLE PRECISION) / :calls)"
    turns = f"(2 * pi() * :days * {share})"
    seconds = f"({START.timestamp():.0f} + 86400.0 * (:days * {share} + {DAY_AND_NIGHT} / (2 * pi()) * sin({turns})))"
    if name == "postgresql":
        numbers = "generate_series(CAST(:first AS INTEGER), :beyond - 1) AS n"
        instant = "to_timestamp(round(1000 * ({})) / 1000)"
        identity = "'call-' || lpad(CAST(n AS TEXT), 9, '0')"
    else:
        numbers = (
            "(WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :beyond - 1)"
            " SELECT n FROM numbers)"
        )
        instant = "strftime('%Y-%m-%d %H\\:%M\\:%f', {}, 'unixepoch')"
        identity = "printf('call-%09d', n)"
    called, ended = instant.format(seconds), instant.format(f"{seconds} + coalesce(duration_seconds, 0)")
    return (
        f"INSERT INTO model_calls (id, called_at, created_at, updated_at, {sampled})"
        f" SELECT {identity}, {called}, {called}, {ended}, {sampled}"
        f" FROM {numbers} JOIN sampled_calls ON number = n % {SAMPLE}"
    )
