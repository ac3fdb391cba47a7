"""What the usage benchmark does in a fresh process, so that its memory is its own.

`python -m benchmarks.child aggregate FIRST LAST` aggregates the hours between two ISO 8601 times into the database of
DATABASE_URL twice, as new and as unchanged; `python -m benchmarks.child last-run` reads the newest run of the instance
in DAGSTER_HOME. Both print JSON.

What belongs here: nothing that imports more than the work itself needs.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def main(command: str, *arguments: str) -> None:
    result = last_run() if command == "last-run" else aggregate_twice(*arguments)
    print(json.dumps(result))


def aggregate_twice(first: str, last: str) -> dict[str, Any]:
    """Aggregate all hours, then again; the peaks of memory after each."""
    from ops_pipeline.database.engine import connect  # noqa: PLC0415
    from ops_pipeline.settings import load_settings  # noqa: PLC0415
    from ops_pipeline.usage.aggregate import Policy, aggregate  # noqa: PLC0415
    from ops_pipeline.usage.hours import Window  # noqa: PLC0415

    engine = connect(load_settings().operations_url())
    peaks = {"imports": peak_bytes()}
    for name in ("aggregate", "again"):
        for _ in aggregate(engine, Window(datetime.fromisoformat(first), datetime.fromisoformat(last)), Policy()):
            pass
        peaks[name] = peak_bytes()
    engine.dispose()
    return peaks


def last_run() -> dict[str, Any]:
    """Status and times of the newest run."""
    from dagster import DagsterInstance  # noqa: PLC0415

    with DagsterInstance.get() as instance:
        record = instance.get_run_records(limit=1)[0]
        return {
            "run_id": record.dagster_run.run_id,
            "status": record.dagster_run.status.value,
            "created": record.create_timestamp.timestamp(),
            "started": record.start_time,
            "ended": record.end_time,
        }


def peak_bytes(process: str = "self") -> int:
    """The most memory that a process has had resident.

    Linux hands `ru_maxrss` on to a child: it would be the benchmark's own peak, measured at the fork. VmHWM begins
    with the program.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if process == "self" else 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
