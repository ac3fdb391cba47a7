"""Usage tables as text: nothing lost on the way to CSV and JSON, and a table that people can read."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from ops_pipeline.usage.formats import COLUMNS, money, note, printable, render
from ops_pipeline.usage.reading import Period, UsageQuestionError, UsageRow, UsageTable
from ops_pipeline_tests.usage.roll_up_rows import HOUR, NOON

NOTHING = UsageRow(
    key="",
    **dict.fromkeys(("calls", "succeeded", "failed", "processing", "images", "duration_count"), 0),
    **dict.fromkeys(("input_tokens", "output_tokens", "reasoning_tokens", "cache_read_tokens"), 0),
    cache_write_tokens=0,
    media_seconds=Decimal("0.000000"),
    credits=Decimal("0.0000000000"),
    duration_seconds_sum=Decimal("0.000000"),
)
ROWS = (
    replace(
        NOTHING,
        key='a "quoted", model\nof two lines',
        calls=1_234_567,
        succeeded=1_234_567,
        input_tokens=2**60 + 1,
        credits=Decimal("98765432109.0123456789"),
        duration_seconds_sum=Decimal("10.000000"),
        duration_count=3,
    ),
    replace(NOTHING, calls=1, failed=1, credits=Decimal("0.0000000001")),
)
TOTAL = replace(ROWS[0], key="total", calls=1_234_568, failed=1, credits=Decimal("98765432109.0123456790"))
TABLE = UsageTable("model", Period(NOON, NOON + HOUR * 3, ZoneInfo("Europe/Berlin")), ROWS, TOTAL, 0, 0)


def test_csv_brings_back_every_key_and_number_unchanged():
    lines = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert [line["model"] for line in lines] == [row.key for row in ROWS]
    for line, row in zip(lines, ROWS, strict=True):
        assert Decimal(line["credits"]) == row.credits
        assert int(line["input_tokens"]) == row.input_tokens
        assert int(line["calls"]) == row.calls
    assert [line["mean_duration_seconds"] for line in lines] == ["3.333333", ""]
    assert lines[1]["credits"] == "0.0000000001"


def test_a_csv_column_can_be_summed_because_the_total_is_not_in_it():
    lines = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert sum(int(line["calls"]) for line in lines) == TOTAL.calls
    assert sum(Decimal(line["credits"]) for line in lines) == TOTAL.credits


def test_json_keeps_decimals_as_text_with_every_digit():
    answer = json.loads(render(TABLE, "json"))
    assert answer["rows"][0]["credits"] == "98765432109.0123456789"
    assert answer["rows"][0]["input_tokens"] == 2**60 + 1
    assert answer["rows"][0]["model"] == ROWS[0].key
    assert answer["rows"][1]["mean_duration_seconds"] is None
    assert answer["total"]["credits"] == "98765432109.0123456790"
    assert set(answer["total"]) == set(COLUMNS)
    assert (answer["start"], answer["end"]) == ("2026-11-21T12:00:00+00:00", "2026-11-21T15:00:00+00:00")
    assert (answer["zone"], answer["final"], answer["hours_missing"]) == ("Europe/Berlin", True, 0)


def test_the_table_is_aligned_and_shows_the_total_and_no_empty_columns():
    lines = render(TABLE, "table").splitlines()
    assert lines[0] == "Usage by model, 2026-11-21 13:00 to 2026-11-21 16:00 (Europe/Berlin)"
    body = [line for line in lines if "98,765,432,109.0123456789" in line or "0.0000000001" in line]
    assert len(body) == 2
    assert "1,234,567" in body[0]
    assert body[0].index("98,765,432,109.0123456789") + len("98,765,432,109.0123456789") == body[1].index(
        "0.0000000001"
    ) + len("0.0000000001")
    assert "98,765,432,109.0123456790" in next(line for line in lines if line.lstrip().startswith("total"))
    assert "images" not in "\n".join(lines)
    assert "Not final" not in "\n".join(lines)


def test_the_table_of_no_rows_has_a_total_of_zeros():
    lines = render(replace(TABLE, rows=(), total=NOTHING), "table")
    assert "total" in lines
    assert "0.00" in lines


def test_the_table_says_when_numbers_are_not_final():
    unfinished = replace(TABLE, hours_missing=1, hours_provisional=2)
    words = "Not final: 1 of 3 hours not aggregated yet, 2 hours aggregated while calls were still running."
    assert note(unfinished) == words
    assert render(unfinished, "table").endswith(words + "\n")
    assert note(TABLE) is None


def test_a_key_cannot_move_the_cursor_or_forge_a_line():
    """Names of models and apps come from whoever calls the gateway; ESC [ clears a terminal."""
    assert printable("\x1b[2Jx\ny") == "\\u001b[2Jx\\u000ay"
    assert printable("") == "(none)"
    shown = render(replace(TABLE, rows=(replace(NOTHING, key="[red]\x1b[2J[/red]"),)), "table")
    assert "[red]\\u001b[2J[/red]" in shown
    assert "\x1b" not in shown


def test_small_amounts_are_not_shown_as_nothing():
    assert [money(Decimal(text)) for text in ("0", "0.000012345678", "1E-10", "0.5000", "1234.5", "-2")] == [
        "0.00",
        "0.00001235",
        "0.0000000001",
        "0.50",
        "1,234.50",
        "-2.00",
    ]


def test_an_unknown_format_is_refused_with_the_choices():
    with pytest.raises(UsageQuestionError, match=r"'xml'.*table, csv, json"):
        render(TABLE, "xml")  # ty: ignore[invalid-argument-type]
