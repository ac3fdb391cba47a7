"""The shallow saver's lists of writes, which it reads as a whole at every step, and never shortens itself.

What belongs here: taking out of them what was deleted. What does not: which writes go.
"""

from __future__ import annotations

from collections.abc import Sequence

from ops_pipeline.checkpoints.connection import Store
from ops_pipeline.checkpoints.lots import BATCH_KEYS
from ops_pipeline.checkpoints.policy import Verdict


def shorten(store: Store, verdicts: Sequence[Verdict]) -> None:
    """Take the keys of these verdicts out of the lists that stay; a list of another type is left as it is."""
    shortened = [verdict for verdict in verdicts if verdict.lists]
    if not shortened:
        return
    pipeline = store.client.pipeline(transaction=False)
    for verdict in shortened:
        for registry in verdict.lists:
            for start in range(0, len(verdict.some), BATCH_KEYS):
                pipeline.zrem(registry, *verdict.some[start : start + BATCH_KEYS])
    for answer in pipeline.execute(raise_on_error=False):
        if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
            raise answer
