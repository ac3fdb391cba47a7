"""The table of services and the picture of their last day."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine, insert

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.services.figures import COLORS, service_rows, spans, timeline
from ops_pipeline.services.registry import Registry, Service, TcpCheck
from ops_pipeline.services.states import (
    DEGRADED,
    DOWN,
    GIVEN_UP,
    MAINTENANCE,
    RECOVERING,
    STOPPED,
    UNKNOWN,
    UP,
    Look,
    State,
)
from ops_pipeline.services.store import RESTARTED, TRANSITION, record_looks
from ops_pipeline.services.tables import service_events
from ops_pipeline_tests.usage.calls import NOON

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STATES = (UP, DEGRADED, DOWN, GIVEN_UP, RECOVERING, MAINTENANCE, STOPPED, UNKNOWN)


def service(name: str, **fields: Any) -> Service:
    usual: dict[str, Any] = {"name": name, "description": name, "recovery": "none", "alert": "ops"}
    return Service(**usual | {"check": TcpCheck(kind="tcp", port=80), "down_after": 1} | fields)


def registry(*services: Service) -> Registry:
    return Registry(services=services)


def happened(engine: Engine, name: str, *changes: tuple[timedelta, str], kind: str = TRANSITION) -> None:
    """Write events of so long ago."""
    with reading(engine) as connection:
        now = database_now(connection)
    rows = [
        {"at": now - ago, "service": name, "kind": kind, "after": after, "reason": f"to {after}"}
        for ago, after in changes
    ]
    with writing(engine) as connection:
        connection.execute(insert(service_events), rows)


def test_services_that_are_not_up_come_first_and_critical_ones_before_others(engine: Engine) -> None:
    several = registry(
        service("b"), service("a"), service("up", critical=True), service("vip", critical=True), service("calm")
    )
    looks = {name: Look(UP if name in {"up", "calm"} else DOWN, "told") for name in several.by_name()}
    record_looks(engine, several.services, looks, "run")
    rows, _, _ = service_rows(engine, several)
    assert [row.service.name for row in rows] == ["vip", "a", "b", "up", "calm"]
    assert [row.state.state for row in rows] == [DOWN, DOWN, DOWN, UP, UP]
    assert rows[0].state.reason == "told"


def test_uptime_is_told_for_a_day_a_week_and_thirty_days(engine: Engine) -> None:
    happened(engine, "web", (40 * DAY, UP), (12 * HOUR, DOWN), (6 * HOUR, UP))
    rows, transitions, now = service_rows(engine, registry(service("web")))
    assert rows[0].uptimes == pytest.approx((0.75, 1 - 6 / (7 * 24), 1 - 6 / (30 * 24)), abs=1e-4)
    assert [state for _, state in transitions["web"]] == [UP, DOWN, UP]
    with reading(engine) as connection:
        assert now <= database_now(connection)


def test_services_of_which_nothing_is_known_have_a_row_without_figures(engine: Engine) -> None:
    """The first run with a service that could not be looked at failed: zip() argument 2 is longer than argument 1."""
    several = registry(service("never"), service("unknown"))
    record_looks(engine, several.services[1:], {"unknown": Look(UNKNOWN, "no systemctl")}, "run")
    rows, transitions, now = service_rows(engine, several)
    assert [row.uptimes for row in rows] == [(None, None, None)] * 2
    assert [row.state.reason for row in rows] == ["", "no systemctl"]
    assert rows[0].state == State()
    assert rows[0].last_action == ""
    assert transitions == {}
    assert timeline(several, transitions, now).startswith(b"\x89PNG")


def test_the_last_action_is_told_with_its_time(engine: Engine) -> None:
    happened(engine, "web", (2 * HOUR, "done"), kind=RESTARTED)
    rows, _, now = service_rows(engine, registry(service("web")))
    moment, _, words = rows[0].last_action.rpartition(" to ")
    assert words == "done"
    assert moment in {f"{now - 2 * HOUR - seconds * timedelta(seconds=1):%d %b %H:%M}" for seconds in (0, 60)}


def test_spans_are_cut_to_their_window() -> None:
    changes = [(NOON - 30 * HOUR, UP), (NOON - 6 * HOUR, DOWN), (NOON - 5 * HOUR, UP), (NOON + HOUR, DOWN)]
    assert spans(changes, NOON - DAY, NOON) == [(UP, -24, 18), (DOWN, -6, 1), (UP, -5, 5)]
    assert spans(changes[:1], NOON - DAY, NOON) == [(UP, -24, 24)]
    assert spans(changes[3:], NOON - DAY, NOON) == []
    assert spans([], NOON - DAY, NOON) == []


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def painted(content: bytes, color: str) -> int:
    """How many pixels of a picture have a color."""
    wanted = [int(color[index : index + 2], 16) for index in (1, 3, 5)]
    return int((pixels(content) == wanted).all(axis=2).sum())


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_painted_in_its_color(state: str) -> None:
    """The picture failed with the first service that an operator had stopped."""
    one = registry(service("web"))
    legend = timeline(one, {}, NOON)
    whole = timeline(one, {"web": [(NOON - 2 * DAY, state)]}, NOON)
    half = timeline(one, {"web": [(NOON - 12 * HOUR, state)]}, NOON)
    areas = [painted(picture, COLORS[state]) - painted(legend, COLORS[state]) for picture in (half, whole)]
    assert areas[0] > 2000
    assert areas[1] == pytest.approx(2 * areas[0], rel=0.1)


def test_the_picture_grows_with_the_services_up_to_forty() -> None:
    """Of a thousand services it had eighty million pixels."""
    heights = [
        pixels(timeline(registry(*(service(f"s{number}") for number in range(count))), {}, NOON)).shape[0]
        for count in (1, 40, 41)
    ]
    assert heights[0] < 200 < heights[1] == heights[2]
