"""What `ops-pipeline check` looks at for checkpoints: the Redis that holds them.

What belongs here: looking, with advice; nothing is written.
"""

from __future__ import annotations

import redis

from ops_pipeline.checking import Check
from ops_pipeline.checkpoints.connection import configured_url, in_words, open_store
from ops_pipeline.checkpoints.plans import Request, Retention, policy_of
from ops_pipeline.checkpoints.scanning import size_of
from ops_pipeline.reconcile import Unavailable
from ops_pipeline.settings import Settings


def check_checkpoints(settings: Settings) -> list[Check]:
    """Connect, and look whether the policy makes sense; nothing when no Redis is named."""
    name = "CHECKPOINT_REDIS_URL"
    url = configured_url(settings)
    if url is None:
        return [Check(name, ok=True, detail="not set: checkpoints are not cleaned up")]
    try:
        policy_of(settings, Request(), Retention(settings.checkpoint_retention_days))
        with open_store(url, replicas=settings.checkpoint_scan_replicas) as store, in_words(store.where):
            keys = size_of(store)
    except (Unavailable, ValueError, redis.RedisError) as error:
        return [Check(name, ok=False, detail=str(error))]
    return [Check(name, ok=True, detail=f"{store.where} answers, database {store.database} holds {keys} keys")]
