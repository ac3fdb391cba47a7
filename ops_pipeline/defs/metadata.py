"""Metadata that several assets show: plottable numbers with base units in their names.

What belongs here: the translation of outcomes into Dagster metadata values, and who owns the definitions.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from dagster import MetadataValue

from ops_pipeline.reconcile import Outcome, markdown_table

OWNERS = ["team:platform-operations"]
JOB_METADATA = {"owner": OWNERS[0]}
"""Of jobs made of ops, whose own parameter for owners warns that it is beta wherever they are loaded."""


def totals_metadata(
    *, state: str, calls: int, processing: int, tokens: Mapping[str, int], credits: Decimal, rows: int
) -> dict[str, Any]:
    """The totals of a period; credits are a float here, for plots only: the tables hold them exactly.

    `tokens` is input plus output: most providers count cached and reasoning tokens within these already.
    """
    return {
        "state": state,
        "calls": calls,
        "provisional_calls": processing,
        "tokens": tokens["input_tokens"] + tokens["output_tokens"],
        **dict(tokens),
        "credits": float(credits),
        "rows": rows,
    }


def outcome_metadata(outcome: Outcome) -> dict[str, Any]:
    """The numbers of an outcome, for plots, and its reasons."""
    return {
        "scanned": outcome.scanned,
        "changed": outcome.changed,
        "unchanged": outcome.unchanged,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "reasons": table(
            ("reason", "times"), [(why, times) for why, times in outcome.reasons.items() if times], empty="None."
        ),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> MetadataValue:
    """A Markdown table, or a sentence when there is nothing to show."""
    return MetadataValue.md(markdown_table(header, rows) if rows else empty)
