"""Leases: one holder at a time, nobody dead for ever, and whoever lost one is told before it does harm."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select, update

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.leases import KEPT_EVERY_SECONDS, Lease, LeaseHeld, leased, leases


def held(engine: Engine) -> dict[str, str]:
    """The owner of each lease."""
    with reading(engine) as connection:
        return {row.name: row.owner for row in connection.execute(select(leases))}


def seconds_left(engine: Engine) -> float:
    """How long the one lease that there is lasts, by the database's clock."""
    with reading(engine) as connection:
        until = connection.execute(select(leases.c.expires_at)).scalar_one()
        return (until - database_now(connection)).total_seconds()


def expire(engine: Engine, by: timedelta = timedelta(seconds=1)) -> None:
    """Let every lease have run out: whoever holds it stood still for so long."""
    with writing(engine) as connection:
        connection.execute(update(leases).values(expires_at=database_now(connection) - by))


def test_a_lease_has_one_holder_until_it_is_given_back(engine: Engine) -> None:
    with leased(engine, "sweep"):
        with pytest.raises(LeaseHeld, match="sweep is at work in another run: wait for it"):
            leased(engine, "sweep").__enter__()
        with leased(engine, "another"):
            assert set(held(engine)) == {"sweep", "another"}
    assert held(engine) == {}
    with leased(engine, "sweep"):
        pass


def test_what_a_dead_holder_held_is_free_once_it_has_run_out_and_not_before(engine: Engine) -> None:
    dead = Lease(engine, "sweep", 300, lambda: 0.0)
    assert dead.taken()
    assert 299 <= seconds_left(engine) <= 300
    assert not Lease(engine, "sweep", 300, lambda: 0.0).taken()
    expire(engine)
    with leased(engine, "sweep") as lease:
        assert held(engine) == {"sweep": lease.owner}


def test_a_lease_is_renewed_now_and_then_and_at_once_when_asked(engine: Engine) -> None:
    clock = [1_000.0]
    with leased(engine, "sweep", 300, lambda: clock[0]) as lease:
        expire(engine)
        lease.keep()
        assert seconds_left(engine) < 0
        clock[0] += KEPT_EVERY_SECONDS
        lease.keep()
        assert seconds_left(engine) > 290
        expire(engine)
        lease.keep(now=True)
        assert seconds_left(engine) > 290


def test_whoever_lost_its_lease_is_told_and_takes_nothing_from_the_new_holder(engine: Engine) -> None:
    slow = Lease(engine, "sweep", 300, lambda: 0.0)
    assert slow.taken()
    expire(engine)
    with leased(engine, "sweep") as lease:
        with pytest.raises(LeaseHeld, match="was taken over by another run, since this one stood still for too long"):
            slow.keep(now=True)
        slow.give_back()
        assert held(engine) == {"sweep": lease.owner}
    # Nor when the other one has ended meanwhile: its work is done, and may not be done again.
    with pytest.raises(LeaseHeld):
        slow.keep(now=True)


def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(engine: Engine) -> None:
    with leased(engine, "sweep") as lease:
        expire(engine)
        lease.keep(now=True)
        assert seconds_left(engine) > 290


def test_work_that_fails_gives_its_lease_back(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), leased(engine, "sweep"):
        _ = 1 / 0
    assert held(engine) == {}


def test_the_error_of_the_work_is_told_when_the_lease_cannot_be_given_back(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Lease) -> None:
        raise DatabaseProblem("the server is gone")

    monkeypatch.setattr(Lease, "give_back", gone)
    with pytest.raises(ZeroDivisionError), leased(sqlite_engine, "sweep"):
        _ = 1 / 0
    assert len(held(sqlite_engine)) == 1


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_it(engine: Engine, *, dead: bool) -> None:
    if dead:
        assert Lease(engine, "sweep", 300, lambda: 0.0).taken()
        expire(engine)
    start, won = threading.Barrier(5), []

    def take() -> None:
        start.wait()
        if Lease(engine, "sweep", 300, lambda: 0.0).taken():
            won.append(1)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]
