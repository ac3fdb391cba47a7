"""Which hosts there are, and what is written about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, insert, select

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.hypervisor.hosts import Host, Seen, mark_hosts, read_hosts, was_restarted
from ops_pipeline.hypervisor.tables import hypervisor_hosts

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
REFRESH = timedelta(minutes=15)


def add(engine: Engine, **row: object) -> None:
    with writing(engine) as connection:
        connection.execute(insert(hypervisor_hosts).values(**row))


def hosts(engine: Engine, uri: str = "test:///default") -> list[Host]:
    with reading(engine) as connection:
        return read_hosts(connection, uri)


def mark(engine: Engine, seen: dict[str, Seen], now: datetime = NOW) -> int:
    found = hosts(engine)
    with writing(engine) as connection:
        return mark_hosts(connection, found, seen, now, REFRESH)


def test_without_rows_there_is_one_host_at_the_uri_of_the_environment(engine: Engine) -> None:
    assert hosts(engine) == [Host("local", "test:///default")]
    assert hosts(engine, "") == []


def test_the_row_kept_about_the_local_host_leaves_it_the_only_one(engine: Engine) -> None:
    """What was written about the host must not make it a host with a URI of its own."""
    mark(engine, {"local": Seen(uptime_seconds=500)})
    assert hosts(engine, "qemu:///system") == [Host("local", "qemu:///system", "up", "", NOW, NOW, 500)]
    add(engine, id="a", libvirt_uri="test:///default")
    assert [host.id for host in hosts(engine)] == ["a"]


def test_a_local_host_with_a_uri_is_one_among_others(engine: Engine) -> None:
    add(engine, id="local", libvirt_uri="qemu:///system")
    add(engine, id="a", libvirt_uri="qemu+ssh://a/system")
    assert [(host.id, host.uri) for host in hosts(engine)] == [
        ("a", "qemu+ssh://a/system"),
        ("local", "qemu:///system"),
    ]


def test_a_host_that_does_not_answer_is_marked_with_the_reason_and_keeps_when_it_was_seen(engine: Engine) -> None:
    add(engine, id="a", libvirt_uri="x")
    assert mark(engine, {"a": Seen(uptime_seconds=10)}) == 1
    later = NOW + timedelta(minutes=1)
    assert mark(engine, {"a": Seen("nothing answers")}, later) == 1
    assert mark(engine, {"a": Seen("nothing answers")}, later + timedelta(minutes=1)) == 0
    assert hosts(engine) == [Host("a", "x", "unreachable", "nothing answers", later, NOW, 10)]
    back = NOW + timedelta(minutes=5)
    assert mark(engine, {"a": Seen(uptime_seconds=310)}, back) == 1
    assert hosts(engine) == [Host("a", "x", "up", "", back, back, 310)]


def test_a_host_that_is_well_is_written_no_more_often_than_the_setting_says(engine: Engine) -> None:
    add(engine, id="a", libvirt_uri="x")
    times = [NOW, NOW + timedelta(minutes=14), NOW + timedelta(minutes=15), NOW + timedelta(minutes=16)]
    assert [mark(engine, {"a": Seen()}, time) for time in times] == [1, 0, 1, 0]


def test_a_host_deleted_during_the_look_does_not_come_back(engine: Engine) -> None:
    add(engine, id="a", libvirt_uri="x")
    found = hosts(engine)
    with writing(engine) as connection:
        connection.execute(delete(hypervisor_hosts))
    with writing(engine) as connection:
        mark_hosts(connection, found, {"a": Seen()}, NOW, REFRESH)
    with reading(engine) as connection:
        assert connection.execute(select(hypervisor_hosts)).all() == []


def test_an_uptime_that_fell_shows_a_restart() -> None:
    seen = Host("a", "x", last_seen_at=NOW, uptime_seconds=1000)
    later = NOW + timedelta(seconds=600)
    assert was_restarted(seen, 300, later)
    assert not was_restarted(seen, 1600, later)
    # A guest of an overloaded machine counts less than the time that passes.
    assert not was_restarted(seen, 1400, later)
    assert not was_restarted(seen, None, later)
    assert not was_restarted(Host("a", "x"), 300, later)
