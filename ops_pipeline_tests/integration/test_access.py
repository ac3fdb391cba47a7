"""Nobody reaches the job interface without a login, viewers change nothing, operators can: through the real nginx."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops_pipeline_tests.integration.access import LOGINS, NAME, Gate, gate

pytestmark = pytest.mark.xdist_group("access")
SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "jobs.py"}
QUESTION = b'{"query": "{ version }"}'
JSON = {"Content-Type": "application/json"}
PATHS = [
    "/",
    "/graphql",
    "//graphql",
    "/./graphql",
    "/livez/../graphql",
    "/livez/%2e%2e/graphql",
    "/%2e%2e/graphql",
    "/%67raphql",
    "/graphql/",
    "/graphql?query={version}",
    "/livez/",
    "/livez%2f..%2fgraphql",
    "/livezgraphql",
    "/LIVEZ",
    "/server_info",
    "/dagster_version",
    "/logs/x/y/z",
    "/debug/x",
    "/download_debug/x",
    "/notebook",
    "/reports/",
    "/reports/usage-2026-11-21.html",
    "/reports../secret.txt",
    "/locations/jobs.py/jobs/harmless",
    "/static/js/main.js",
    "/robots.txt",
]


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """nginx, the web server of operators and that of viewers."""
    with gate(tmp_path_factory.mktemp("access")) as running:
        yield running


@pytest.mark.parametrize("user", [None, "alice:wrong", "bob:", "nobody:", ":"])
def test_no_path_and_no_method_reaches_a_web_server_without_a_login(inside: Gate, user: str | None) -> None:
    """One location without a login was enough, and tidied-up paths led there."""
    login = inside.headers(*user.split(":", 1)) if user else {}
    for path in PATHS:
        for method in ("GET", "POST", "HEAD"):
            status, headers, body = inside.ask(path, method=method, body=QUESTION, headers=JSON | login)
            # 400 to what climbs out of the root, 405 to a query in the address.
            assert status == 401 or (status == 400 and "%2e" in path) or (status == 405 and "?" in path), (method, path)
            assert b"version" not in body and b"agster" not in body
            assert "nonce" not in headers.get("Content-Security-Policy", ""), "Dagster answered"
        for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "get", "GRAPHQL"):
            status, _, body = inside.ask(path, method=method, body=QUESTION, headers=JSON | login)
            assert status in {400, 401, 405} and b"version" not in body, (method, path)
    assert inside.handshake(None) == (401, b"")


@pytest.mark.parametrize("scheme", ["Bearer", "basic", "Basic", "Digest", ""])
def test_a_login_that_is_none_is_refused(inside: Gate, scheme: str) -> None:
    for value in ("", "!!!", "YWxpY2U=", "Og==", "YWxpY2UAOng="):
        assert inside.ask("/graphql", method="POST", headers={"Authorization": f"{scheme} {value}"})[0] == 401


def test_bytes_that_are_no_http_and_a_second_request_inside_the_first_reach_nothing(inside: Gate) -> None:
    """A request hidden in the body of another one must not be read as one of its own by what stands behind."""
    hidden = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Length: 24\r\n\r\n" + QUESTION
    for headers in ({"Transfer-Encoding": "chunked", "Content-Length": "4"}, {"Transfer-Encoding": "xchunked"}):
        status, _, body = inside.ask("/graphql", method="POST", headers=headers, body=b"0\r\n\r\n" + hidden)
        assert status in {400, 401, 501} and b"version" not in body


def test_viewers_and_operators_see_everything(inside: Gate) -> None:
    for user in LOGINS:
        assert inside.graphql(user, "{ version }")["data"]["version"]
        status, headers, body = inside.ask("/", user)
        assert status == 200 and b"<html" in body
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Strict-Transport-Security"] == "max-age=31536000"
        assert "nginx/" not in headers["Server"]
        status, _, body = inside.ask("/reports/usage-2026-11-21.html", user)
        assert (status, body) == (200, b"<h1>LLM usage</h1>")
        assert b"usage-2026-11-21.html" in inside.ask("/reports/", user)[2]
        assert b"not a report" not in inside.ask("/reports/../secret.txt", user)[2]
        assert b"not a report" not in inside.ask("/reports/%2e%2e/secret.txt", user)[2]


def test_subscriptions_of_the_ui_work_through_a_websocket(inside: Gate) -> None:
    for user in LOGINS:
        status, greeting = inside.handshake(user)
        assert status == 101 and b"connection_ack" in greeting


LAUNCH = """
mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on UnauthorizedError { message } ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message } } }
"""
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "launchRun": (
        LAUNCH,
        {"params": {"selector": SELECTOR | {"jobName": "harmless"}, "runConfigData": {}, "mode": "default"}},
    ),
    "launchPartitionBackfill": (
        "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename } }",
        {"params": {"assetSelection": [{"path": ["letters"]}], "partitionNames": ["a"], "fromFailure": False}},
    ),
    "startSchedule": (
        "mutation($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) { __typename } }",
        {"selector": SELECTOR | {"scheduleName": "yearly"}},
    ),
    "terminateRuns": (
        'mutation { terminateRuns(runIds: ["x"], terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename'
        " ... on TerminateRunsResult { terminateRunResults { __typename } } } }",
        {},
    ),
    "deletePipelineRun": ('mutation { deletePipelineRun(runId: "x") { __typename } }', {}),
    "wipeAssets": (
        'mutation { wipeAssets(assetPartitionRanges: [{assetKey: {path: ["letters"]}}]) { __typename } }',
        {},
    ),
    "reloadWorkspace": ("mutation { reloadWorkspace { __typename } }", {}),
    "shutdownRepositoryLocation": (
        'mutation { shutdownRepositoryLocation(repositoryLocationName: "jobs.py") { __typename } }',
        {},
    ),
    "setConcurrencyLimit": ('mutation { setConcurrencyLimit(concurrencyKey: "x", limit: 1) }', {}),
}
ANSWERED_BY_A_FLAG = {"setConcurrencyLimit"}
"""Their refusal fits into no true or false, and becomes an error of the server."""
STATE = """
{ runsOrError { ... on Runs { count } } partitionBackfillsOrError { ... on PartitionBackfills { results { id } } }
  instance { concurrencyLimits { concurrencyKey } }
  schedules: scheduleOrError(scheduleSelector: {
    repositoryName: "__repository__", repositoryLocationName: "jobs.py", scheduleName: "yearly"
  }) { ... on Schedule { scheduleState { status } } } }
"""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("viewer", ["bob", "ALICE"])
def test_a_viewer_changes_nothing(inside: Gate, change: str, viewer: str) -> None:
    """ALICE is not alice, who may."""
    query, variables = CHANGES[change]
    before = inside.graphql("alice", STATE)["data"]
    answer = inside.graphql(viewer, query, status=500 if change in ANSWERED_BY_A_FLAG else 200, **variables)
    assert "UnauthorizedError" in json.dumps(answer), answer
    assert inside.graphql("alice", STATE)["data"] == before


def test_a_viewer_has_none_of_dagsters_permissions(inside: Gate) -> None:
    """What a later Dagster adds is refused too, or this fails."""
    query = "{ permissions { permission value } }"
    allowed = {
        user: {one["permission"] for one in inside.graphql(user, query)["data"]["permissions"] if one["value"]}
        for user in LOGINS
    }
    assert allowed["bob"] == allowed["ALICE"] == set()
    assert {"launch_pipeline_execution", "start_schedule", "launch_partition_backfill"} <= allowed["alice"]


def test_an_operator_launches_and_switches(inside: Gate) -> None:
    query, variables = CHANGES["launchRun"]
    launched = inside.graphql("alice", query, **variables)["data"]["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    query, variables = CHANGES["startSchedule"]
    assert inside.graphql("alice", query, **variables)["data"]["startSchedule"]["__typename"] == "ScheduleStateResult"
    state = inside.graphql("bob", STATE)["data"]
    assert state["schedules"]["scheduleState"]["status"] == "RUNNING"
    assert state["runsOrError"]["count"] == 1
    assert "alice" in (inside.folder / "access.log").read_text()


def test_pages_of_other_sites_cannot_use_the_login_of_a_browser(inside: Gate) -> None:
    """A browser sends a remembered login with whatever another site makes it ask."""
    query, variables = CHANGES["startSchedule"]
    body = json.dumps({"query": query, "variables": variables}).encode()
    foreign = ["https://evil.example", "null", f"http://{NAME}:{inside.port}", f"https://{NAME}.evil.example", "x y"]
    for origin in foreign:
        headers = JSON | {"Origin": origin}
        assert inside.ask("/graphql", "alice", method="POST", body=body, headers=headers)[0] == 403, origin
        assert inside.handshake("alice", origin=origin)[0] == 403
    for site in ("cross-site", "same-site"):
        fetched = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert inside.ask("/graphql", "alice", method="POST", body=body, headers=JSON | fetched)[0] == 403
        assert inside.ask("/", "alice", headers=fetched)[0] == 403
        assert inside.ask("/", "alice", headers=fetched | {"Sec-Fetch-Mode": "navigate"})[0] == 200, "a link"
    for path in ("/graphql", "//graphql", "/graphql/", "/%67raphql", "/x/../graphql"):
        for query in ("query=mutation{reloadWorkspace{__typename}}", "%71uery=%7Bversion%7D"):
            assert inside.ask(f"{path}?{query}", "alice")[0] == 405


def test_only_this_machine_asks_without_a_login_whether_all_lives(inside: Gate) -> None:
    status, _, body = inside.ask("/livez")
    assert (status, body) == (200, b"alive")
    assert inside.ask("/livez", source="127.0.0.9")[0] == 403
    assert inside.ask("/livez", "alice", source="127.0.0.9")[0] == 403


def test_plain_http_leads_to_the_own_name_over_tls_and_other_names_nowhere(inside: Gate) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", inside.plain_port, timeout=30)
    for method, host in (("GET", NAME), ("POST", "evil.example")):
        connection.request(method, "/graphql?x=1", headers={"Host": host} | inside.headers("alice"))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 308
        assert answer.headers["Location"] == f"https://{NAME}/graphql?x=1"
    connection.close()
    with pytest.raises(http.client.RemoteDisconnected):
        inside.ask("/", "alice", headers={"Host": "evil.example"})


def test_web_servers_listen_on_this_machine_only(inside: Gate) -> None:
    elsewhere = socket.gethostbyname(socket.gethostname())
    for port in inside.direct.values():
        for address in {elsewhere, "127.0.0.9"} - {"127.0.0.1"}:
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=5).close()


def test_a_body_larger_than_any_run_config_is_refused(inside: Gate) -> None:
    status, _, _ = inside.ask("/graphql", "alice", method="POST", headers=JSON | {"Content-Length": "999999999"})
    assert status == 413


def test_the_name_stands_where_the_readme_says() -> None:
    folder = Path(__file__).parents[2] / "deploy" / "nginx"
    lines = [line for line in (folder / "ops-pipeline.conf").read_text().splitlines() if not line.startswith("#")]
    assert sum(NAME in line for line in lines) == 3
    assert f"`{NAME}` (three places)" in (folder / "README.md").read_text()
