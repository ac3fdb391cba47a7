"""Dagster's daemon as its leader's child: `python -m ops_pipeline.defs.daemon`, options as of `dagster-daemon run`.

It begins before its leader leads: everything is imported and the code of the workspace is loaded while it stands by, so
that a take-over takes no longer than the lead itself. Until then it only reads; it works once its leader hands it the
token on its standard input.

What belongs here: starting Dagster's own daemon behind the fence of `operations/fenced.py`.
"""

import sys
from collections.abc import Callable
from typing import Any

from dagster import DagsterInstance
from dagster._core.remote_representation.grpc_server_registry import ErrorRegistryEntry, GrpcServerRegistry
from dagster._core.storage.runs import SqliteRunStorage
from dagster._daemon.cli import run_command
from dagster._daemon.controller import DagsterDaemonController

from ops_pipeline.defs.ticks import make_ticks_cheap
from ops_pipeline.operations.fenced import end_with_leader, fence_connections, token_of_leader
from ops_pipeline.operations.logs import tell_on_terminal
from ops_pipeline.settings import load_settings

NO_LEADER = "This daemon has no leader: start `ops-pipeline daemon`, which sees to it that only one works."


def main() -> None:
    """Run the daemon, once its leader leads."""
    if sys.stdin.isatty():
        sys.exit(NO_LEADER)
    settings = load_settings()
    tell_on_terminal(settings)
    on_a_server = bool(settings.dagster_postgres_url.get_secret_value())
    if not on_a_server:
        _refuse_unfenced_storage()

    def lead() -> None:
        token = token_of_leader()
        if token is None:
            sys.exit(NO_LEADER)
        end_with_leader()
        if on_a_server:
            fence_connections(token)

    _begin_with_the_lead(lead)
    _end_ticks_before_their_workspace()
    _keep_code_servers()
    make_ticks_cheap()
    run_command()


def _begin_with_the_lead(lead: Callable[[], None]) -> None:
    """Hold Dagster back where its code is loaded and no thread of it has begun."""
    begin = DagsterDaemonController.__init__

    def wait(self: DagsterDaemonController, *given: Any, **named: Any) -> None:
        lead()
        begin(self, *given, **named)

    DagsterDaemonController.__init__ = wait


def _keep_code_servers() -> None:
    """Keep a code server for as long as it lives.

    Dagster starts a new one every minute, which imports everything: ten minutes of a processor in each hour, for code
    that a restart changes (the web server keeps its own too).
    """

    def forget_dead(self: GrpcServerRegistry) -> None:
        with self._lock:
            for origin, entry in list(self._active_entries.items()):
                if isinstance(entry, ErrorRegistryEntry) or entry.process.server_process.poll() is not None:
                    del self._active_entries[origin]

    GrpcServerRegistry.clear_all_grpc_endpoints = forget_dead


def _end_ticks_before_their_workspace() -> None:
    """Let ticks under way end before the code they use goes.

    Dagster closes its workspace first: a tick of a sensor that was in its pool then failed with
    DagsterCodeLocationNotFoundError, and each restart raised an alert for it.
    """
    end_loops = DagsterDaemonController.__exit__

    def end(self: DagsterDaemonController, *why: Any) -> None:
        end_loops(self, *why)
        for daemon in self.daemons:
            # Waits for its pool; Dagster does it once more, later, for nothing.
            daemon.__exit__(*why)

    DagsterDaemonController.__exit__ = end  # ty: ignore[invalid-assignment]


def _refuse_unfenced_storage() -> None:
    """End with a message where Dagster's storage is a server, but the fence a file of this machine."""
    with DagsterInstance.get() as instance:
        storage = type(instance.run_storage).__name__
    if storage != SqliteRunStorage.__name__:
        sys.exit(
            f"Dagster's storage here is {storage}: set DAGSTER_POSTGRES_URL to its URL, so that the lead is held"
            " in that database instead of a file of this machine."
        )


if __name__ == "__main__":
    main()
