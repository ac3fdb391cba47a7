"""Dagster's daemon as its leader's child: `python -m ops_pipeline.defs.daemon`, options as of `dagster-daemon run`.

What belongs here: starting Dagster's own daemon behind the fence of `operations/fenced.py`.
"""

import sys

from dagster import DagsterInstance
from dagster._core.storage.runs import SqliteRunStorage
from dagster._daemon.cli import run_command

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
    run_command()


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
