"""30 days of usage and a queue of tasks on two Celery workers, one of them killed: `python -m benchmarks.distributed`.

Real PostgreSQL, Redis, workers, daemon and web server, as `make run-distributed` starts them. The tasks are no work:
an analyzer service of the tests answers them.

What belongs here: the sizes, and the telling.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from ops_pipeline_tests.checkpoints.redis_servers import redis_server
from ops_pipeline_tests.integration.distributed import Load, distributed, play
from ops_pipeline_tests.servers import postgres


def main() -> int:
    """Play it once; 1 when something was lost or done twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--tasks", type=int, default=2_000)
    options = parser.parse_args()
    load = Load(options.calls, options.tasks, at_once=80, seconds=0.5, patience_seconds=900)
    with (
        tempfile.TemporaryDirectory(prefix="ops_pipeline_distributed_") as folder,
        postgres() as server,
        redis_server() as redis,
        distributed(Path(folder), server.new_database(), redis.url(), load) as scene,
    ):
        result = play(scene)
        losses = scene.losses()
        result |= {"losses": losses, "failed_runs": scene.reasons_of_failed_runs(), "load_average": os.getloadavg()}
        scene.deployment.stop()
    print(json.dumps(result, indent=1, default=str))
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
