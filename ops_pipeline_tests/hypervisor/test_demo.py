"""The demo fleet is read by libvirt itself, and shows what an operator is there for."""

from __future__ import annotations

import random
from pathlib import Path

from sqlalchemy import Engine

from ops_pipeline.hypervisor.checks import check_hosts
from ops_pipeline.hypervisor.demo import changed, demo_hosts, live, write_demo
from ops_pipeline.hypervisor.graphics.facts import GraphicsPolicy
from ops_pipeline.hypervisor.graphics.update import FORMING, RESTING, GraphicsSetup, plan
from ops_pipeline.hypervisor.graphics.update import look as graphics_look
from ops_pipeline.hypervisor.machines.sync import Applied
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.hypervisor.scenes import add_host, add_machines, passed, rows_of, scene


def test_the_demo_is_written_once_and_shows_each_kind_of_finding(engine: Engine, tmp_path: Path) -> None:
    assert write_demo(engine, tmp_path, 1).startswith("A demo fleet of 41 domains on 2 hosts")
    before = rows_of(engine)
    assert write_demo(engine, tmp_path, 1) == "There are machines or hosts already: no demo fleet written."
    assert (len(before), rows_of(engine)) == (40, before)
    made, applied = passed(scene(engine, ""))
    assert {finding.kind for finding in made.findings} == {"alert", "conflict", "stuck", "unknown_domain"}
    assert (applied.changed, dict(made.problems)) == (2, {})
    assert passed(scene(engine, ""))[1] == Applied()


def test_the_gpus_of_the_demo_have_one_conflict(engine: Engine, tmp_path: Path) -> None:
    write_demo(engine, tmp_path, 1)
    policy = GraphicsPolicy(resting=RESTING, forming=FORMING)
    setup = GraphicsSetup(engine, "", 20, policy)
    planned = plan(graphics_look(setup), policy)
    assert [f"{one.address} {one.text}" for one in planned.conflicts] == [
        "0000:62:00.0 somebodys-test-rig (running) uses it, a machine that the platform does not know"
    ]
    assert (planned.problems, planned.notes) == ({}, ())


def test_a_deployment_with_machines_gets_no_demo(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "real"})
    write_demo(engine, tmp_path, 1)
    assert (list(rows_of(engine)), list(tmp_path.glob("demo*"))) == (["real"], [])


def test_live_changes_are_followed(sqlite_engine: Engine, tmp_path: Path) -> None:
    write_demo(sqlite_engine, tmp_path, 1)
    passed(scene(sqlite_engine, ""))
    before = {path: path.read_text() for path in tmp_path.glob("*.xml")}
    slept: list[float] = []
    live(sqlite_engine, tmp_path, 1, slept.append, lambda: len(slept) >= 20)
    assert {path: path.read_text() for path in tmp_path.glob("*.xml")} != before
    _, applied = passed(scene(sqlite_engine, ""))
    assert applied.changed > 0


def test_live_leaves_a_deployment_without_the_demo_alone(sqlite_engine: Engine, tmp_path: Path) -> None:
    live(sqlite_engine, tmp_path, 1, lambda _: None, lambda: False)
    assert list(tmp_path.glob("*.xml")) == []


def test_the_demo_is_the_same_for_the_same_seed_and_machines_with_gpus_go_on_running() -> None:
    assert demo_hosts(3) == demo_hosts(3)
    host = demo_hosts(1)[0]
    chance = random.Random(1)  # noqa: S311 - a demo, not a secret
    for _ in range(100):
        host = changed(host, chance)
    assert [domain.state for domain in host.domains if domain.devices] == [1] * 5


def test_check_tells_of_each_host_whether_it_answers(engine: Engine) -> None:
    assert [line.detail for line in check_hosts(engine, load_settings())] == [
        "none: LIBVIRT_URI is not set and hypervisor_hosts is empty"
    ]
    add_host(engine, "a", "test:///default")
    add_host(engine, "b", "qemu+unix:///system?socket=/nowhere")
    good, bad = check_hosts(engine, load_settings())
    assert (good.name, good.ok, good.detail) == ("hypervisor a", True, "test:///default answers: 1 domains")
    assert (bad.name, bad.ok) == ("hypervisor b", False)
    assert "nothing answers: is libvirtd (or virtqemud) running there" in bad.detail
