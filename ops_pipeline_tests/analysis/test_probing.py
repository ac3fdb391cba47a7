"""Services are asked how they are, over the real protocol, before their failed tasks come back."""

from __future__ import annotations

import time

from sqlalchemy import Engine, insert

from ops_pipeline.analysis.breakers import Health
from ops_pipeline.analysis.recovery.probing import probe_services
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.engine import writing
from ops_pipeline_tests.analysis.analyzers import analyzer
from ops_pipeline_tests.servers import free_port


def test_a_service_is_well_when_it_says_so(engine: Engine) -> None:
    """An open port was taken for a service that is well."""
    with analyzer() as well, analyzer(health="degraded") as ill:
        probe = probe_services(engine, {"well": well.url, "ill": ill.url, "away": f"ws://127.0.0.1:{free_port()}"})
        found = probe(["well", "ill", "away", "unknown"])
    assert found["well"] == Health(healthy=True, tools=("ruff", "bandit"))
    assert {name: one.healthy for name, one in found.items()} == {"well": True, "ill": False, "away": False}
    assert all(found[name].message for name in ("ill", "away"))


def test_the_address_in_the_table_goes_before_that_of_the_variable(engine: Engine) -> None:
    with analyzer() as moved:
        with writing(engine) as connection:
            connection.execute(insert(analyzer_services).values(service="static", url=moved.url))
        found = probe_services(engine, {"static": f"ws://127.0.0.1:{free_port()}"})(["static"])
    assert found["static"].healthy


def test_silent_services_are_asked_all_at_once(engine: Engine) -> None:
    """Each of them blocked the loop for half a minute."""
    with analyzer(health=None) as one, analyzer(health=None) as two, analyzer() as well:
        started = time.monotonic()
        found = probe_services(engine, {"one": one.url, "two": two.url, "well": well.url})(["one", "two", "well"])
        seconds = time.monotonic() - started
    assert {name: answer.healthy for name, answer in found.items()} == {"one": False, "two": False, "well": True}
    # One after the other would take ten.
    assert seconds < 10
