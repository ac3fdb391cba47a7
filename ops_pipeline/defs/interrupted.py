"""Runs whose processes are gone: reported as failed before a daemon starts, so that they hold nothing up.

A machine that lost power, or a killed process group, leaves runs that look alive until their maximum runtime is
over, and no other run of their job starts before that. Only for a deployment on one machine, where nothing of an
earlier start is left: `scripts/serve.sh` sees to that with a lock.

What belongs here: `python -m ops_pipeline.defs.interrupted`.
"""

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from ops_pipeline.reconcile import counted

AT_WORK = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def fail_interrupted_runs(instance: DagsterInstance) -> int:
    """Report every run that was at work as failed; what it committed is kept. Returns how many there were."""
    runs = instance.get_runs(filters=RunsFilter(statuses=AT_WORK))
    for run in runs:
        instance.report_run_failed(run, "Its process ended with the deployment. What it committed is kept.")
    return len(runs)


def main() -> None:
    """Report the interrupted runs of the instance in DAGSTER_HOME."""
    with DagsterInstance.get() as instance:
        count = fail_interrupted_runs(instance)
    if count:
        print(f"{counted(count, 'run was', 'runs were')} interrupted by the last stop; the jobs go on where they were.")


if __name__ == "__main__":
    main()
