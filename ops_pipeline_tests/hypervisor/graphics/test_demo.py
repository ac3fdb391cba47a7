"""The demo's GPUs: libvirt reads them, and they show what an operator meets."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from ops_pipeline.hypervisor.graphics.demo import demo_gpus
from ops_pipeline.hypervisor.graphics.facts import GraphicsPolicy
from ops_pipeline.hypervisor.graphics.update import FORMING, RESTING, GraphicsSetup, apply, look, plan
from ops_pipeline_tests.hypervisor.graphics.samples import HOST, add_host, add_machine, give, gpu_states, guest
from ops_pipeline_tests.hypervisor.libvirt_servers import test_node_xml

NAMES = ["desk", "train-1", "train-2", "render", "lab", "web"]


def test_the_demo_has_one_of_everything(sqlite_engine: Engine, tmp_path: Path) -> None:
    made = demo_gpus(NAMES)
    file = tmp_path / "host.xml"
    file.write_text(test_node_xml([guest(name, *made.hostdevs.get(name, ())) for name in NAMES], made.devices))
    add_host(sqlite_engine, HOST, file)
    for name in NAMES:
        add_machine(sqlite_engine, name)
    for address, part, name in made.assignments:
        give(sqlite_engine, name, address, mdev_uuid=part)
    policy = GraphicsPolicy(resting=RESTING, forming=FORMING)
    setup = GraphicsSetup(sqlite_engine, "", 20, policy)
    planned = plan(look(setup), policy)
    apply(setup, planned)
    assert sorted(gpu_states(sqlite_engine).values()) == ["assigned"] * 4 + ["available"] * 2 + ["unusable"]
    assert [one.text for one in planned.conflicts] == ["lab has it on the hypervisor, but was never given it"]
    assert (planned.problems, planned.notes) == ({}, ())


def test_the_demo_needs_enough_machines() -> None:
    with pytest.raises(ValueError, match="at least 5 machines"):
        demo_gpus(NAMES[:4])
