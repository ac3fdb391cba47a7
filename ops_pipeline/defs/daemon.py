"""Dagster's daemon as its leader's child: `python -m ops_pipeline.defs.daemon`, options as of `dagster-daemon run`.

What belongs here: starting Dagster's own daemon behind the fence of `operations/fenced.py`.
"""

import sys
from typing import Any

from dagster import DagsterInstance
from dagster._core.storage.runs import SqliteRunStorage
from dagster._daemon.cli import run_command
from dagster._daemon.controller import DagsterDaemonController

from ops_pipeline.operations.fenced import end_with_leader, fence_connections
from ops_pipeline.operations.logs import tell_on_terminal
from ops_pipeline.settings import leader_token, load_settings


def main() -> None:
    """Run the daemon under the token of its leader."""
    token = leader_token()
    if token is None:
        sys.exit("Start this through `ops-pipeline daemon`, which sees to it that only one daemon works.")
    settings = load_settings()
    tell_on_terminal(settings)
    end_with_leader()
    if settings.dagster_postgres_url.get_secret_value():
        fence_connections(token)
    else:
        _refuse_unfenced_storage()
    _end_ticks_before_their_workspace()
    run_command()


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
