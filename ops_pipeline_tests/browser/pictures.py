"""The pictures of the documentation: `python -m ops_pipeline_tests.browser.pictures [NAME …]`.

What belongs here: which moments are worth a picture. What leads to them is in `person`, and stands under test there.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Locator, expect

from ops_pipeline_tests.browser.person import WIDTH, Person, person_at
from ops_pipeline_tests.browser.scene import chromium, deployment, waits_for
from ops_pipeline_tests.integration.processes import PROJECT

IMAGES = PROJECT / "docs" / "images"
DAYS, CALLS = 7, 50_000

Act = Callable[[Person], Locator | None]
"""Leads to the moment, and returns what is worth the picture; None for the whole window."""


def lineage(person: Person) -> None:
    """From raw calls to a report."""
    person.open("/locations/ops_pipeline/asset-groups/usage/lineage")
    for asset in ("model_calls", "usage_report"):
        person.sees(asset, exact=True)
    expect(person.page.get_by_text("100% filled")).to_have_count(4)
    person.is_at_rest()


def partitions(person: Person) -> None:
    """The grid of hours, and what one of them holds."""
    person.open(
        f"/assets/hourly_model_usage?view=partitions&partition={datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}-09:00"
    )
    person.sees("Partitions Selected")
    person.sees("top_models")
    person.is_at_rest()


def backfill(person: Person) -> Locator:
    """The dialog that launches a range."""
    person.opens_grid()
    day = f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}"
    dialog = person.chooses_range(f"{day}-00:00", f"{day}-23:00")
    person.sees("24 partitions", within=dialog)
    return person.framed(dialog)


def check(person: Person) -> None:
    """A check that failed, and why."""
    person.opens_check("hourly_model_usage", "no_absurd_values")
    for text in ("odd_hours", "No unknown status or type", "look for the writer"):
        person.sees(text)
    person.is_at_rest()


def report(person: Person) -> Locator:
    """The picture of a report, in the UI."""
    person.page.set_viewport_size({"width": WIDTH, "height": 1_600})
    person.open("/assets/usage_report?view=events")
    return person.framed(person.reads("report"))


def plan(person: Person) -> None:
    """The plan of a dry run."""
    person.types_config(
        "cleanup_checkpoints", "ops:\n  sweep_checkpoints:\n    config:\n      dry_run: true\n      max_share: 1\n"
    )
    person.launches("Success")
    person.looks_for_events("step_output")
    person.sees("newest checkpoint older", within=person.reads("changes"))
    person.is_at_rest()


def refused(person: Person) -> None:
    """A run that its limit refused."""
    person.types_config("cleanup_checkpoints", "ops:\n  sweep_checkpoints:\n    config:\n      dry_run: false\n")
    person.launches("Failure")
    person.looks_for_events("step_failure")
    person.sees("more than the limit of 10%")
    person.is_at_rest()


def raised(person: Person) -> None:
    """The launchpad with a raised limit."""
    person.types_config("cleanup_checkpoints", "ops:\n  sweep_checkpoints:\n    config:\n      max_share: 0.6\n")
    # The panel beside the editor describes what stands at the cursor.
    person.page.get_by_text("max_share").first.click()
    person.sees("the share of threads that may go")
    person.is_at_rest()


def services(person: Person) -> None:
    """The table of services."""
    person.open("/assets/host_services?view=events")
    person.sees("billing-api (critical)", exact=True)
    person.is_at_rest()


def machines(person: Person) -> None:
    """What a run for machines did."""
    person.open("/assets/machines")
    person.sees("by_status")
    person.is_at_rest()


def gpus(person: Person) -> Locator:
    """The table of GPUs."""
    person.launches_defaults("update_graphics_information")
    person.open("/assets/gpus?view=events")
    return person.framed(person.reads("gpus"))


def tasks(person: Person) -> Locator:
    """What a worker did."""
    person.page.set_viewport_size({"width": WIDTH, "height": 1_600})
    person.open("/assets/analysis_tasks?view=events")
    return person.framed(person.reads("tasks"))


def pipelines(person: Person) -> None:
    """The table of pipelines."""
    person.page.set_viewport_size({"width": WIDTH, "height": 480})
    person.open("/assets/pipelines?view=events")
    person.sees("pipeline_demo", exact=True)
    person.is_at_rest()


def maintenance(person: Person) -> None:
    """The plan of a dry run."""
    passes = ("clean_orphan_apps", "cancel_orphans", "end_stuck", "archive_old", "prune_calls")
    dry = "".join(f"  {name}:\n    config:\n      dry_run: true\n" for name in passes)
    person.types_config("run_maintenance", f"ops:\n{dry}")
    person.launches("Success")
    person.looks_for_events("step_output")
    person.sees("its directory is missing", within=person.reads("plan"))
    person.is_at_rest()


def automation(person: Person) -> None:
    """Schedules and sensors."""
    person.open("/automation")
    person.sees("usage_rollups_sensor")
    person.is_at_rest()


ACTS: tuple[Act, ...] = (
    *(lineage, partitions, backfill, check, report, plan, refused, raised),
    *(services, machines, gpus, tasks, pipelines, maintenance, automation),
)


def take(person: Person, act: Act, folder: Path) -> Path:
    """Play one act, and take its picture."""
    shown = act(person)
    file = folder / f"{act.__name__}.png"
    (shown or person.page).screenshot(path=file)
    return file


def main(names: list[str]) -> None:
    """Start a deployment, and take the named pictures, or all."""
    wanted = [act for act in ACTS if not names or act.__name__ in names]
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder) / "home", days=DAYS, calls=CALLS, lab=True) as started,
        chromium() as browser,
    ):
        waits_for(started, "usage_report")
        for act in wanted:
            with person_at(browser, started.port) as person:
                print(take(person, act, IMAGES))


if __name__ == "__main__":
    main(sys.argv[1:])
