"""The Celery app of workers that execute runs: `celery --app ops_pipeline.defs.distributed.app worker`.

What belongs here: the app and its task. Jobs know nothing of it.
"""

import sys
from importlib import import_module
from typing import Any

from celery import Celery
from celery.signals import worker_init
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task

from ops_pipeline.defs.distributed.configuration import CELERY, QUEUE
from ops_pipeline.settings import give_dagster_its_variables, load_settings


def build_app(broker: str) -> Celery:
    """Build the app over a broker, which keeps the states of its tasks too."""
    app = make_app({"broker": broker, "backend": broker, "task_default_queue": QUEUE})
    app.conf.update(CELERY)
    create_execute_job_task(app)
    return app


@worker_init.connect
def _prepare(**_: Any) -> None:
    """Load the definitions once, before the processes of runs are forked; end where they cannot be loaded."""
    if not load_settings().celery_broker_url.get_secret_value():
        sys.exit("CELERY_BROKER_URL is not set: name the Redis of the deployment, for example redis://host:6379/1.")
    give_dagster_its_variables()
    try:
        import_module("ops_pipeline.definitions")
    except Exception as error:  # noqa: BLE001 - Celery would only log it, and every run would fail
        sys.exit(f"The definitions cannot be loaded: {error}")


app = build_app(load_settings().celery_broker_url.get_secret_value())
