"""What the usage benchmark measures about late calls: looks that find nothing, and one that finds a thousand.

What belongs here: looks, and the aggregation of what they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import update

from benchmarks.report import Measure, Reading, plain
from benchmarks.scene import Scene
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.usage.late import Late, LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.tables import model_calls

CHANGED = 1_000
LOOKS = 3
POLICY = LatePolicy(overlap=timedelta(minutes=5), sweep_every=timedelta(minutes=10), sweep_hours=168)
"""The defaults of `settings`."""


def late_calls(scene: Scene) -> list[Measure]:
    """Look for late calls: with nothing to find, with calls counted as well, and with `CHANGED` of them changed."""
    with reading(scene.engine) as connection:
        now = database_now(connection)
    idle, uncounted = LateCursor(looked_until=now, swept_at=now), LateCursor(looked_until=now)
    measures = [
        plain("look for late calls, none there", _looks(scene, idle, 20)[0]),
        plain(f"look that counts {2 * POLICY.sweep_hours} hours' calls as well", _looks(scene, uncounted, LOOKS)[0]),
    ]
    _change(scene)
    readings, late = _looks(scene, idle, LOOKS)
    found = f"{late.compared} hours compared, {len(late.stale)} stale, {len(late.waiting)} waiting"
    measures.append(plain(f"look with {CHANGED:,} calls changed", readings, result=found))
    hours = _all_stale(scene, idle)
    measures.append(plain(f"aggregate those {len(hours)} hours", [scene.measure(lambda: scene.aggregate(hours))]))
    readings, late = _looks(scene, idle, LOOKS)
    found = f"{late.compared} hours compared, {len(late.stale)} stale"
    measures.append(plain("next looks, with these calls in their overlap", readings, result=found))
    return measures


def _looks(scene: Scene, cursor: LateCursor, times: int) -> tuple[list[Reading], Late]:
    results: list[Late] = []

    def look() -> None:
        with reading(scene.engine) as connection:
            results.append(look_for_late_calls(connection, cursor, POLICY))

    readings = [scene.measure(look) for _ in range(times)]
    return readings, results[-1]


def _all_stale(scene: Scene, cursor: LateCursor) -> Sequence[datetime]:
    """The stale hours of as many looks as it takes until none waits."""
    stale: set[datetime] = set()
    while True:
        late = _looks(scene, cursor, 1)[1]
        stale |= set(late.stale)
        if not late.waiting:
            return sorted(stale)
        # Far enough ahead that only those that wait are compared.
        looked = late.cursor.looked_until
        cursor = LateCursor(looked and looked + 2 * POLICY.overlap, late.waiting, late.cursor.swept_at)


def _change(scene: Scene) -> None:
    step = max(1, scene.calls // CHANGED)
    ids = [f"call-{number:09d}" for number in range(0, scene.calls, step)][:CHANGED]
    with writing(scene.engine) as connection:
        changed = update(model_calls).where(model_calls.c.id.in_(ids))
        connection.execute(changed.values(output_tokens=model_calls.c.output_tokens + 1))
