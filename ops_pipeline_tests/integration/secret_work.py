"""What a deployment does in a day, as a process of its own: jobs, also failing ones, and the sensor of alerts.

What belongs here: running, for the test that searches all it leaves behind. Arguments: names of jobs.
"""

from __future__ import annotations

import sys

from sqlalchemy import func, select

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.defs.watching import open_instance
from ops_pipeline.operations.tables import alert_messages
from ops_pipeline.settings import load_settings
from ops_pipeline_tests.defs.deployment import deployment


def work(jobs: list[str]) -> None:
    """Run jobs on the deployment of the environment, then tell people; a line for each."""
    engine = connect(load_settings().operations_url())
    with open_instance() as instance:
        home = deployment(engine, instance)
        for job in jobs:
            print(job, "ended well" if home.run_job(job).success else "failed")
        home.run("hourly_model_usage_job", "2026-03-01-00:00")
        print(home.sense("alerts_sensor"))
    with reading(engine) as connection:
        print(connection.execute(select(func.count()).select_from(alert_messages)).scalar_one(), "messages")
    engine.dispose()


if __name__ == "__main__":
    work(sys.argv[1:])
