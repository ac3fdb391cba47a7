"""Asking hosts, all at once, each with a deadline that holds even when libvirt hangs.

Name a function (`module:function`) of a module that imports little: neither SQLAlchemy nor Dagster. It is called in a
process of the host's own, with an open connection and an argument, and returns facts that can be pickled:

    def domain_names(connection, _argument):
        return [domain.name() for domain in connection.listAllDomains()]

    answers = ask_hosts(hosts, "ops_pipeline.hypervisor.somewhere:domain_names", deadline_seconds=20)
    for host_id, answer in answers.items():
        answer.problem or answer.facts

Looks get a connection that can only read. For changes say `writes=True`, and write the function as a generator that
yields each step as soon as it is done. A process that is killed at its deadline is killed between two calls of
libvirt or inside one, which the daemon then finishes or not, never by half: let each call leave a consistent state.
What was yielded before is in `Answer.items`, with the problem beside it.

What belongs here: starting the process, and typed answers. What does not: what is asked.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops_pipeline.hypervisor.explaining import late_text, shown
from ops_pipeline.hypervisor.hosts import UNREACHABLE, Host
from ops_pipeline.hypervisor.look import ITEM, PROBLEM, RESULT, Question, Request, Returned
from ops_pipeline.log_fields import fields
from ops_pipeline.reconcile import Unavailable

AT_ONCE = 64
"""Hosts asked at once; a process of its own costs each some 10 MB."""
SPARE_SECONDS = 10.0
"""The whole is given up so long after the last deadline: the process that watches the deadlines is stuck itself."""

UNREACHED = "not looked at: other hosts that do not answer took the time of all; a run takes longer and does the rest"

_MAIN = "import sys; sys.path[:] = sys.argv[1:]; from ops_pipeline.hypervisor.look import main; main()"
"""It finds modules where this process does, without looking for them itself (`-S`): an editable installation is found
by a hook that only such a look would start, so the folder of the project is named too."""


@dataclass(frozen=True)
class Answer:
    """What a host answered.

    Attributes:
        host_id: of the host.
        facts: what the function returned; None when there is a problem.
        problem: why there are no facts, in words with what to do; empty when all is well.
        items: what a generator yielded, also before a problem.
        seconds: how long it took.
        unreached: the time for all hosts was over before it could answer, which says nothing about it.
    """

    host_id: str
    facts: Any = None
    problem: str = ""
    items: tuple[Any, ...] = ()
    seconds: float = 0.0
    unreached: bool = False

    def sure(self) -> Any:
        """The facts.

        Raises:
            Unavailable: there are none.
        """
        if self.problem:
            raise Unavailable(f"{self.host_id}: {self.problem}")
        return self.facts


def ask_hosts(
    hosts: Sequence[Host],
    function: str,
    *,
    deadline_seconds: float,
    argument: Any = None,
    arguments: Mapping[str, Any] | None = None,
    writes: bool = False,
    at_once: int = AT_ONCE,
    variable: str = "HYPERVISOR_DEADLINE_SECONDS",
    total_seconds: float = math.inf,
) -> dict[str, Answer]:
    """Call a function once for each host, concurrently; never raises for what a host does.

    Args:
        hosts: whom to ask.
        function: `module:function`, called with the connection and the argument.
        deadline_seconds: for each host, from the moment in which it is asked.
        argument: for every host.
        arguments: by host id, for hosts that get one of their own.
        writes: open connections that may change something.
        at_once: so many hosts at a time.
        variable: says how long the deadline is; for messages.
        total_seconds: for all of them; hosts that are not asked by then, or have not had their own time, are
            `unreached`. Those that are known not to answer come last.

    Returns:
        The answers by host id, in the order of `hosts`.
    """
    given = arguments or {}
    # libvirt takes an empty URI for whatever runs on this machine.
    named = sorted((host for host in hosts if host.uri), key=lambda host: host.state == UNREACHABLE)
    asked = [Question(host.id, host.uri, function, given.get(host.id, argument), writes) for host in named]
    rounds = -(-len(asked) // at_once)
    longest_seconds = min(total_seconds, deadline_seconds * rounds) + SPARE_SECONDS
    request = Request(tuple(asked), deadline_seconds, at_once, total_seconds)
    returned = _ask(request, longest_seconds) if asked else []
    found = {one.host_id: one for one in returned}
    return {host.id: _answer(host, found.get(host.id), deadline_seconds, variable) for host in hosts}


def tell_answers(log: logging.Logger, answers: Mapping[str, Answer]) -> None:
    """Tell each host that was looked at, as a detail of the log."""
    for host, one in answers.items():
        known = fields(host=host, reason=one.problem, duration_seconds=round(one.seconds, 3))
        log.debug("Host %s %s.", host, f"gave no answer: {one.problem}" if one.problem else "answered", extra=known)


def _ask(request: Request, longest_seconds: float) -> list[Returned]:
    process = subprocess.Popen(  # noqa: S603 - this Python and its own module path
        [sys.executable, "-S", "-E", "-c", _MAIN, str(Path(__file__).parents[2]), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(pickle.dumps(request), timeout=longest_seconds)
    except subprocess.TimeoutExpired:
        return []
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        return _failed(request, errors.decode(errors="replace"))
    return pickle.loads(output)  # noqa: S301 - written by the process that was started here


def _failed(request: Request, errors: str) -> list[Returned]:
    last = errors.strip().rpartition("\n")[2] or "it said nothing"
    if "No module named 'libvirt'" in last:
        last = "libvirt-python is not installed: install ops-pipeline[hypervisor]"
    problem = pickle.dumps((PROBLEM, f"the process that talks to hosts failed: {last}"))
    return [Returned(question.host_id, (problem,), "ended", 0.0) for question in request.questions]


def _answer(host: Host, returned: Returned | None, deadline_seconds: float, variable: str) -> Answer:
    if not host.uri:
        return Answer(host.id, problem="its libvirt_uri is empty: write it into hypervisor_hosts")
    if returned is None:
        return Answer(host.id, problem=late_text(host.uri, deadline_seconds, variable))
    facts, problem, finished, items = None, "", False, []
    for message in returned.messages:
        kind, value = pickle.loads(message)  # noqa: S301 - as above
        if kind == ITEM:
            items.append(value)
            continue
        finished = True
        facts, problem = (value, "") if kind == RESULT else (None, value)
    if not finished and returned.ended == "late":
        problem = late_text(host.uri, deadline_seconds, variable)
    elif not finished and returned.ended == "unreached":
        return Answer(host.id, problem=UNREACHED, items=tuple(items), seconds=returned.seconds, unreached=True)
    elif not finished:
        problem = f"{shown(host.uri)}: the process that talked to it was ended by {returned.ended}: look at its memory"
    return Answer(host.id, facts, problem, tuple(items), returned.seconds)
