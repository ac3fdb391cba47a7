"""What is wanted is read while hosts answer; that is enough to find that nothing differs, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine, update

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.filters import sync
from ops_pipeline.hypervisor.filters.facts import FilterLook
from ops_pipeline.hypervisor.filters.store import Wanted, read_wanted
from ops_pipeline.hypervisor.filters.sync import Firewall, Looked
from ops_pipeline.hypervisor.hosts import Host
from ops_pipeline.hypervisor.tables import network_filter_rules
from ops_pipeline_tests.hypervisor.filters.samples import PREFIX, filter_row, look, reference_row, rule_row, store

WEB = [filter_row("web")], [rule_row("web", action="accept", protocol="tcp", dst_port_start=80)]


def looked(early: Wanted, found: FilterLook) -> Looked:
    return Looked((Host("h", "test:///default"),), {"h": found}, {}, early)


def has(wanted: Wanted) -> FilterLook:
    return look(*wanted.desired.filters.values())


@pytest.fixture
def firewall(engine: Engine) -> Firewall:
    store(engine, *WEB)
    return Firewall(engine, "")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Grows by each reading of what is wanted."""
    found: list[str] = []

    def counted(engine: Engine, prefix: str) -> Wanted:
        found.append(prefix)
        return read_wanted(engine, prefix)

    monkeypatch.setattr(sync, "read_wanted", counted)
    return found


def test_in_sync_nothing_is_read_again(firewall: Firewall, reads: Sequence[str]) -> None:
    early = read_wanted(firewall.engine, PREFIX)
    planned = sync.plan(firewall, looked(early, has(early)))
    assert (planned.settled, planned.in_sync, list(reads)) == (True, 1, [])


def changed_port(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(update(network_filter_rules).values(dst_port_start=443))


def removed(engine: Engine) -> None:
    store(engine, [filter_row("other")])


def included(engine: Engine) -> None:
    store(engine, [*WEB[0], filter_row("vm")], WEB[1], [reference_row("vm", "web")])


@pytest.mark.parametrize("change", [changed_port, removed, included])
def test_what_became_new_in_the_database_and_on_the_host_during_a_look_is_not_put_back(
    firewall: Firewall, reads: Sequence[str], change: Callable[[Engine], None]
) -> None:
    early = read_wanted(firewall.engine, PREFIX)
    change(firewall.engine)
    planned = sync.plan(firewall, looked(early, has(read_wanted(firewall.engine, PREFIX))))
    assert (planned.changes, planned.settled, list(reads)) == ((), True, [PREFIX])


def test_a_circle_that_is_gone_by_the_end_of_the_look_refuses_nothing(firewall: Firewall) -> None:
    store(firewall.engine, *WEB, [reference_row("web", "web")])
    early = read_wanted(firewall.engine, PREFIX)
    store(firewall.engine, *WEB)
    planned = sync.plan(firewall, looked(early, has(read_wanted(firewall.engine, PREFIX))))
    assert planned.settled


def test_what_waits_is_decided_on_the_last_word(firewall: Firewall, reads: Sequence[str]) -> None:
    """An orphan of the early reading may be wanted by now, and its age is counted on."""
    early = read_wanted(firewall.engine, PREFIX)
    with_orphan = look(*early.desired.filters.values(), replace(early.desired.filters["ibay-web"], name="ibay-old"))
    planned = sync.plan(firewall, looked(early, with_orphan))
    assert (list(planned.hosts["h"].orphans), list(reads)) == (["ibay-old"], [PREFIX])


def test_rows_that_changed_make_another_filter(firewall: Firewall) -> None:
    """Filters are remembered by all that they are made of."""
    first = read_wanted(firewall.engine, PREFIX).desired.texts["ibay-web"]
    changed_port(firewall.engine)
    second = read_wanted(firewall.engine, PREFIX).desired.texts["ibay-web"]
    assert "'80'" in first and first.replace("'80'", "'443'") == second
    with writing(firewall.engine) as connection:
        connection.execute(update(network_filter_rules).values(action="allow"))
    assert list(read_wanted(firewall.engine, PREFIX).desired.refused) == ["ibay-web"]
    assert list(read_wanted(firewall.engine, "their-").desired.refused) == ["ibay-web"]
