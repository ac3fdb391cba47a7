"""The things that a person does, done in Chromium against one running deployment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, expect

from ops_pipeline_tests.browser.person import Person, person_at
from ops_pipeline_tests.browser.scene import chromium, deployment, waits_for
from ops_pipeline_tests.integration.processes import Running

pytestmark = pytest.mark.xdist_group("browser")
SWEEP = "ops:\n  sweep_checkpoints:\n    config:\n      "
DAYS = 3


@pytest.fixture(scope="module")
def running_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with deployment(tmp_path_factory.mktemp("browser") / "home", days=DAYS, calls=3_000, lab=False) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def person(running_deployment: Running, browser: Browser) -> Iterator[Person]:
    with person_at(browser, running_deployment.port) as somebody:
        yield somebody


def yesterday(hour: int) -> str:
    return f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}-{hour:02}:00"


def test_the_grid_shows_every_hour_and_a_backfill_of_a_range_succeeds(person: Person) -> None:
    person.opens_grid()
    person.sees("Missing (0)")
    person.sees(f"Materialized ({24 * DAYS}")
    dialog = person.chooses_range(yesterday(0), yesterday(5))
    person.sees("6 partitions", within=dialog)
    person.sees("Backfills all partitions in a single run.", within=dialog)
    person.launches_backfill(dialog)


def test_a_dry_run_shows_its_plan_and_removes_nothing(person: Person) -> None:
    person.types_config("cleanup_checkpoints", f"{SWEEP}dry_run: true\n      max_share: 1\n")
    person.launches("Success")
    person.looks_for_events("step_output")
    plan = person.reads("changes")
    expect(plan.get_by_role("row").nth(50)).to_be_attached()
    person.sees("newest checkpoint", within=plan)
    person.page.keyboard.press("Escape")
    expect(person.page.get_by_role("row", name="threads_removed 0")).to_be_attached()


def test_a_refused_sweep_goes_through_with_a_raised_limit(person: Person) -> None:
    person.types_config("cleanup_checkpoints", f"{SWEEP}dry_run: false\n")
    person.launches("Failure")
    person.looks_for_events("step_failure")
    person.sees("more than the limit of 10%")
    person.sees("launch again with the limit raised in the run config")
    person.launches_again(f"{SWEEP}max_share: 0.6\n", "Success")
    person.looks_for_events("step_output")
    expect(person.page.get_by_role("row", name="success true")).to_be_attached()
    expect(person.page.get_by_role("row", name="threads_removed 0", exact=True)).to_have_count(0)


def test_a_failed_check_says_why(person: Person) -> None:
    person.opens_check("hourly_model_usage", "no_absurd_values")
    person.sees("Failed", exact=True)
    person.sees("look for the writer that made the odd ones")
    expect(person.page.get_by_role("row", name="unknown_type 1")).to_be_visible()


def test_a_report_shows_its_picture(person: Person, running_deployment: Running) -> None:
    waits_for(running_deployment, "usage_report")
    person.open("/assets/usage_report?view=events")
    picture = person.reads("report").get_by_role("img", name="Usage on")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 500
