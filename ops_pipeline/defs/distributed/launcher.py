"""Launches runs as Celery tasks, and notices when the worker of a run is gone.

Dagster's own Celery launcher knows a task's state from the result backend alone, which says STARTED for ever after
`kill -9` of a worker or the loss of its machine. This one asks the workers themselves.

What belongs here: launching, asking, ending. What does not: Celery's settings (see `configuration`).
"""

from __future__ import annotations

from typing import Any

from dagster import DagsterRun
from dagster import _check as check
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import pack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.launcher import CeleryRunLauncher
from typing_extensions import override

from ops_pipeline.defs.distributed.configuration import CELERY

ANSWER_SECONDS = 3.0
MISSES = 3
"""So many looks in a row must find a run with no worker: a busy machine answers late, and a run that has just ended
is with none for a moment."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Dagster's Celery launcher, which besides finds out that a worker was killed."""

    def __init__(self, *, config_source: dict[str, Any] | None = None, **configured: Any) -> None:
        """Make the app that sends; connects when the first run is launched."""
        configured["backend"] = configured.get("broker")
        super().__init__(config_source={**CELERY, **(config_source or {})}, **configured)
        self._missed: dict[str, int] = {}

    @override
    def launch_run(self, context: LaunchRunContext) -> None:
        """Send a run to the workers."""
        run = context.dagster_run
        arguments = ExecuteRunArgs(
            job_origin=check.not_none(run.job_code_origin),
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        # By name, and under the run's id: a daemon that dies before it has noted another id would leave a run of which
        # nobody could ask.
        packed = {"execute_job_args_packed": pack_value(arguments)}
        task = self.celery.signature(TASK_EXECUTE_JOB_NAME, kwargs=packed, immutable=True, task_id=run.run_id)
        self._launch_celery_task_run(run, task, TASK_EXECUTE_JOB_NAME)

    @property
    @override
    def supports_resume_run(self) -> bool:
        """No run is resumed: the jobs look at what is done, and make the rest in a new one."""
        return False

    @override
    def terminate(self, run_id: str) -> bool:
        """Interrupt a run; one that waits in the broker is not begun."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(run_id, terminate=True)
        return True

    @override
    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run lives."""
        state = self.celery.AsyncResult(run.run_id).state
        if state == "SUCCESS":
            return self._found(run, CheckRunHealthResult(WorkerStatus.SUCCESS))
        if state == "FAILURE":
            return self._found(run, CheckRunHealthResult(WorkerStatus.FAILED, "Its process was killed."))
        if self._is_at_work(run.run_id):
            return self._found(run, CheckRunHealthResult(WorkerStatus.RUNNING))
        missed = self._missed.get(run.run_id, 0) + 1
        self._missed[run.run_id] = missed
        if missed < MISSES:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        gone = "No worker has it: the one that began it was killed, or is cut off. What it committed is kept."
        return self._found(run, CheckRunHealthResult(WorkerStatus.FAILED, gone))

    @override
    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """What the broker knows about the task of a run."""
        task = self.celery.AsyncResult(run.run_id)
        where = task.info.get("hostname", "") if isinstance(task.info, dict) else ""
        return f"Its Celery task is {task.state}" + (f" on {where}." if where else ".")

    def _found(self, run: DagsterRun, result: CheckRunHealthResult) -> CheckRunHealthResult:
        self._missed.pop(run.run_id, None)
        return result

    def _is_at_work(self, task_id: str) -> bool:
        """Ask the worker that began a task whether it has it; all of them when the broker has forgotten which."""
        info = self.celery.AsyncResult(task_id).info
        worker = info.get("hostname") if isinstance(info, dict) else None
        inspect = self.celery.control.inspect(
            destination=[worker] if worker else None, timeout=ANSWER_SECONDS, limit=1 if worker else None
        )
        answers = inspect.query_task(task_id) or {}
        return any(answer.get(task_id, [""])[0] == "active" for answer in answers.values())
