"""The daily report: right numbers, a page that opens anywhere, and no half-written file."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from ops_pipeline.usage.hours import day_start
from ops_pipeline.usage.report import Report, build_report, growth, write_report
from ops_pipeline_tests.usage.roll_up_rows import HOUR, NOON, insert_hours, insert_latency, insert_usage, usage_row

DAY = date(2026, 11, 21)
START = day_start(DAY)
NEXT_MORNING = START + timedelta(hours=30)
HOSTILE = "<script>alert('$x_$')</script>&amp;\"" + "long" * 20


class _Cells(HTMLParser):
    """Collects the tags and the texts of a page as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def seen(html: str) -> _Cells:
    cells = _Cells()
    cells.feed(html)
    return cells


def fill(engine: Engine, days: int = 30) -> None:
    """Twelve models and apps, hour by hour, on the days that end with DAY."""
    rows = []
    for back in range(days):
        hour = NOON - timedelta(days=back)
        for number in range(12):
            model = HOSTILE if number == 11 else f"model-{number:02}"
            rows.append(
                usage_row(
                    hour,
                    model=model,
                    app_id=f"app-{number:02}",
                    calls=100 - back,
                    succeeded=90 - back,
                    failed=10,
                    input_tokens=1000 * (number + 1),
                    output_tokens=100,
                    credits=Decimal(number + 1) * Decimal("1.0000000001"),
                )
            )
    insert_usage(engine, *rows)
    for number in range(12):
        model = HOSTILE if number == 11 else f"model-{number:02}"
        insert_latency(engine, NOON, [100.0 * (number + 1)] * (20 + number), model=model)
        insert_latency(engine, NOON, [10.0 * (number + 1)] * 20, model=model, metric="ttfb")
    insert_hours(engine, *(START + HOUR * index for index in range(24)))


@pytest.fixture
def report(sqlite_engine: Engine) -> Report:
    fill(sqlite_engine)
    return build_report(sqlite_engine, DAY, now=NEXT_MORNING)


@pytest.mark.parametrize(
    ("current", "previous", "expected"),
    [("110", "100", 0.1), ("50", "100", -0.5), ("0", "100", -1.0), ("7", "0", 1.0), ("0", "0", 0.0), ("-1", "0", 0.0)],
)
def test_growth_is_relative_to_the_previous_period(current: str, previous: str, expected: float):
    assert growth(Decimal(current), Decimal(previous)) == pytest.approx(expected)


def test_the_report_holds_the_sums_of_the_day_and_of_thirty_days(engine: Engine):
    fill(engine, days=31)
    report = build_report(engine, DAY, now=NEXT_MORNING)
    assert report.total.calls == 12 * 100
    assert report.total.credits == Decimal("78.0000000078")
    assert [row.calls for row in report.hours.rows] == [0] * 12 + [1200] + [0] * 11
    assert len(report.days.rows) == 30
    assert (report.days.rows[0].key, report.days.rows[0].calls) == ("2026-10-23", 12 * 71)
    assert report.days.total.credits == 30 * Decimal("78.0000000078")
    assert report.models.rows[0].key == HOSTILE
    assert [row.key for row in report.apps.rows][:2] == ["app-11", "app-10"]
    assert report.latency[0].key == ("openai", HOSTILE)
    assert report.hours.final


def test_growth_compares_the_day_and_the_week_with_those_before(report: Report):
    found = {(one.measure, one.period): one for one in report.growth}
    day, week = found["calls", "day over the day before"], found["calls", "7 days over the 7 before"]
    assert (day.current, day.previous) == (1200, 1188)
    assert day.rate == pytest.approx(12 / 1188)
    assert week.current == 12 * sum(100 - back for back in range(7))
    assert week.previous == 12 * sum(100 - back for back in range(7, 14))
    assert found["credits", "day over the day before"].rate == 0
    assert found["tokens", "day over the day before"].current == 12 * 100 + 78_000


def test_both_files_are_written_and_the_page_embeds_the_picture(report: Report, tmp_path: Path):
    folder = tmp_path / "reports" / "usage"
    files = write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["usage-2026-11-21.html", "usage-2026-11-21.png"]
    html = files.html.read_text(encoding="utf-8")
    embedded = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert embedded
    assert base64.b64decode(embedded[1]) == files.png.read_bytes()
    assert "http" not in html


def test_the_picture_is_small_and_of_the_width_of_a_page(report: Report, tmp_path: Path):
    content = write_report(report, tmp_path).png.read_bytes()
    picture = Image.open(io.BytesIO(content))
    assert picture.format == "PNG"
    assert picture.size == (900, 1260)
    assert len(content) < 60_000


def test_the_same_report_gives_the_same_files(report: Report, tmp_path: Path):
    first, second = write_report(report, tmp_path / "1"), write_report(report, tmp_path / "2")
    assert first.png.read_bytes() == second.png.read_bytes()
    assert first.html.read_bytes() == second.html.read_bytes()


def test_the_page_shows_the_numbers_as_text(report: Report, tmp_path: Path):
    texts = seen(write_report(report, tmp_path).html.read_text(encoding="utf-8")).texts
    for expected in ("1,200", "78.00", "79,200", "90.00%", "+1.0%", "Models: the 10 of 12 with the most credits"):
        assert expected in texts
    assert "model-01" not in texts, "the eleventh model by credits"
    assert "2026-11-21 12:00" in texts
    assert "2026-10-23" in texts


def test_names_are_escaped_and_shown_whole(report: Report, tmp_path: Path):
    """Model names come from whoever calls the gateway, and the page is opened by people with rights."""
    html = write_report(report, tmp_path).html.read_text(encoding="utf-8")
    page = seen(html)
    assert "script" not in page.tags
    assert HOSTILE in page.texts
    assert f"{HOSTILE} (openai)" in page.texts


@pytest.mark.parametrize("aggregated", [True, False])
def test_a_day_without_calls_gives_a_report_that_says_so(engine: Engine, tmp_path: Path, aggregated: bool):
    if aggregated:
        insert_hours(engine, *(START + HOUR * index for index in range(24)))
    report = build_report(engine, DAY, now=NEXT_MORNING)
    assert report.empty
    texts = seen(write_report(report, tmp_path).html.read_text(encoding="utf-8")).texts
    assert ("There were no calls on this day." in texts) == aggregated
    assert ("No calls of this day have been aggregated so far." in texts) != aggregated
    assert ("Not final: 24 of 24 hours not aggregated yet." in texts) != aggregated
    assert "None on this day." in texts


def test_a_provisional_day_says_so_and_counts_the_running_calls(engine: Engine, tmp_path: Path):
    insert_hours(engine, *(START + HOUR * index for index in range(23)))
    insert_hours(engine, START + HOUR * 23, state="provisional")
    insert_usage(engine, usage_row(START + HOUR * 23, calls=2, succeeded=0, processing=2))
    report = build_report(engine, DAY, now=NEXT_MORNING)
    assert report.total.success_rate is None
    texts = seen(write_report(report, tmp_path).html.read_text(encoding="utf-8")).texts
    assert "Not final: 1 hour aggregated while calls were still running." in texts
    assert "2 calls were still running when their hour was rolled up." in texts


def test_odd_rows_do_not_break_the_picture(engine: Engine, tmp_path: Path):
    """Refunds, unnamed models, calls without credits, and latencies of one value or outside every axis."""
    insert_usage(engine, usage_row(NOON, model="", credits=Decimal("-2.5")))
    insert_usage(engine, usage_row(NOON, model="\n\x1b[2J", app_id="", credits=Decimal(0), calls=10**12))
    insert_latency(engine, NOON, [1e12, 0.001], model="")
    insert_latency(engine, NOON, [5.0], model="$\\frac{", metric="ttfb")
    report = build_report(engine, DAY, now=NEXT_MORNING)
    files = write_report(report, tmp_path)
    assert Image.open(files.png).size == (900, 1260)
    assert "\\u000a\\u001b[2J" in seen(files.html.read_text(encoding="utf-8")).texts


def test_a_full_disk_leaves_the_old_files_and_no_litter(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "reports"
    files = write_report(report, folder)
    before = files.html.read_bytes(), files.png.read_bytes()

    def fail_halfway(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        write_report(report, folder)
    assert (files.html.read_bytes(), files.png.read_bytes()) == before
    assert len(list(folder.iterdir())) == 2


def test_a_second_report_of_a_day_replaces_the_first(sqlite_engine: Engine, tmp_path: Path):
    folder = tmp_path / "reports"
    write_report(build_report(sqlite_engine, DAY, now=NEXT_MORNING), folder)
    insert_usage(sqlite_engine, usage_row(NOON, calls=77_777))
    files = write_report(build_report(sqlite_engine, DAY, now=NEXT_MORNING), folder)
    assert "77,777" in files.html.read_text(encoding="utf-8")
    assert len(list(folder.iterdir())) == 2


def test_the_report_is_of_the_utc_day(engine: Engine):
    for hour in (START - HOUR, START, START + HOUR * 23, START + HOUR * 24):
        insert_usage(engine, usage_row(hour))
    report = build_report(engine, DAY)
    assert report.total.calls == 2
    assert report.made_at.tzinfo is UTC or report.made_at.utcoffset() == timedelta()
    assert abs(datetime.now(UTC) - report.made_at) < timedelta(minutes=5)


def test_pandas_and_matplotlib_are_imported_only_to_write_a_report():
    """They take over a second, which every other command and every code server would pay."""
    check = (
        "import sys, ops_pipeline.usage.report, ops_pipeline.usage.formats;"
        "print([name for name in ('pandas', 'numpy', 'matplotlib', 'PIL', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
