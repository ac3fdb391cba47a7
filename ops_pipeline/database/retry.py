"""Trying a transaction again when another one wrote the same rows.

What belongs here: how often, and how long to wait in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ops_pipeline.database.errors import Conflict

CONFLICT_ATTEMPTS = 5

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def despite_conflicts(
    transaction: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    """Run a whole transaction, up to five times while it meets conflicts; waits at most 5 s in between.

    Raises:
        Conflict: the last attempt met one too.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(Conflict),
        stop=stop_after_attempt(CONFLICT_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        reraise=True,
    )
    return retrying(transaction, *arguments, **keywords)
