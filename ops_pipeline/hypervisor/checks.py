"""What `ops-pipeline check` looks at for virtualisation: every host, once.

What belongs here: lines with advice; nothing is changed.
"""

from __future__ import annotations

from sqlalchemy import Engine

from ops_pipeline.checking import Check
from ops_pipeline.database.engine import reading
from ops_pipeline.hypervisor.explaining import shown
from ops_pipeline.hypervisor.hosts import read_hosts
from ops_pipeline.hypervisor.looking import ask_hosts
from ops_pipeline.hypervisor.machines.domains import LOOK
from ops_pipeline.settings import Settings


def check_hosts(engine: Engine, settings: Settings) -> list[Check]:
    """One line for each host: whether it answers, and how many domains it has."""
    with reading(engine) as connection:
        hosts = read_hosts(connection, settings.libvirt_uri)
    if not hosts:
        return [Check("hypervisors", ok=True, detail="none: LIBVIRT_URI is not set and hypervisor_hosts is empty")]
    answers = ask_hosts(hosts, LOOK, deadline_seconds=settings.hypervisor_deadline_seconds)
    return [
        Check(f"hypervisor {host.id}", ok=False, detail=answers[host.id].problem)
        if answers[host.id].problem
        else Check(
            f"hypervisor {host.id}",
            ok=True,
            detail=f"{shown(host.uri)} answers: {len(answers[host.id].facts.domains)} domains",
        )
        for host in hosts
    ]
