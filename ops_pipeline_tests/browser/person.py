"""What a person does in the web UI, act by act; each ends where there is something to see.

What belongs here: clicking, typing and waiting for what must appear. What does not: judging it (`test_web_ui`), taking
its picture (`pictures`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from ops_pipeline_tests.browser.scene import PATIENCE_SECONDS

MILLISECONDS = 1000.0 * PATIENCE_SECONDS
WIDTH, HEIGHT = 1280, 860
HOURLY = "hourly_model_usage"


@dataclass(frozen=True)
class Person:
    """Somebody before a browser.

    Attributes:
        page: what they see.
        url: of the web UI.
    """

    page: Page
    url: str

    def open(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self.url}{path}")

    def sees(self, text: str, *, within: Locator | None = None, exact: bool = False) -> Locator:
        """Wait for a text, and return where it stands."""
        found = (within or self.page).get_by_text(text, exact=exact).first
        expect(found).to_be_visible()
        return found

    def opens_grid(self, asset: str = HOURLY) -> None:
        """Look at the partitions of an asset."""
        self.open(f"/assets/{asset}?view=partitions")
        self.sees("Partitions Selected")

    def chooses_range(self, first: str, last: str) -> Locator:
        """Open the dialog that materializes the asset, and fill in a range of partitions."""
        self.page.get_by_role("button", name="Materialize…").click()
        dialog = self.page.get_by_role("dialog")
        chosen = dialog.get_by_role("textbox")
        chosen.fill(f"[{first}...{last}]")
        chosen.press("Enter")
        return dialog

    def launches_backfill(self, dialog: Locator) -> None:
        """Launch what the dialog says, and wait among all backfills until it has succeeded."""
        dialog.get_by_role("button", name="Launch backfill").click()
        self.sees("Created backfill")
        self.open("/runs?view=backfills")
        self.sees("Success", exact=True)

    def types_config(self, job: str, config: str) -> None:
        """Open the launchpad of a job, and replace what stands there."""
        self.open(f"/locations/ops_pipeline/jobs/{job}/playground")
        # The defaults are filled in late, over whatever was typed before.
        self.sees("All defaults expanded")
        self._replaces_config(config)

    def _replaces_config(self, config: str) -> None:
        self.page.locator(".CodeMirror").first.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(config)
        self.sees("No errors")

    def launches(self, status: str) -> None:
        """Launch what the launchpad says, and wait until the run has this status."""
        self.page.get_by_role("button", name="Launch Run").click()
        self.page.wait_for_url("**/runs/**")
        expect(self.page.get_by_text(status, exact=True).first).to_be_visible()

    def launches_again(self, config: str, status: str) -> None:
        """From a run's page: open its config in the launchpad, replace it, and launch."""
        self.page.get_by_role("link", name="Open in Launchpad").click()
        self.page.wait_for_url("**/playground**")
        self._replaces_config(config)
        self.launches(status)

    def launches_defaults(self, job: str) -> None:
        """Launch a job as its launchpad proposes it."""
        self.open(f"/locations/ops_pipeline/jobs/{job}/playground")
        self.sees("All defaults expanded")
        self.sees("No errors")
        self.launches("Success")

    def looks_for_events(self, kind: str) -> None:
        """Show only the events of a kind in the log of a run."""
        self.page.get_by_placeholder("Filter…").fill(f"type:{kind.upper()}")

    def reads(self, entry: str) -> Locator:
        """Open an entry of metadata that holds text or a picture, and return the dialog in which it stands."""
        row = self.page.get_by_role("row", name=f"{entry} [Show Markdown]").first
        row.get_by_text("[Show Markdown]").click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        return dialog

    def is_at_rest(self) -> None:
        """Wait until the page has fetched what it shows, its icons included."""
        for still in ("Loading", "fetching statuses"):
            expect(self.page.get_by_text(still)).to_have_count(0)
        with suppress(PlaywrightTimeout):
            self.page.wait_for_load_state("networkidle", timeout=10_000)
        # What has come is drawn with the next frame, colours and sizes with a transition after it.
        self.page.evaluate("() => Promise.all(document.getAnimations().map(one => one.finished.catch(() => 0)))")

    def framed(self, dialog: Locator) -> Locator:
        """The window of a dialog, without what is dimmed behind it."""
        self.is_at_rest()
        return dialog

    def opens_check(self, asset: str, check: str) -> None:
        """Look at the latest result of a check of an asset."""
        self.open(f"/assets/{asset}?view=checks&checkDetail={check}")
        self.sees("Evaluation result")


@contextmanager
def person_at(browser: Browser, port: int) -> Iterator[Person]:
    """Somebody who has just opened the browser."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, timezone_id="UTC")
    page.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    yield Person(page, f"http://127.0.0.1:{port}")
    page.close()
