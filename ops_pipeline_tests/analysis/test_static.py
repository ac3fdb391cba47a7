"""The static analyzer that comes with the project: real ruff, real bandit, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from ops_pipeline.analysis.client import Health, analyze, check_health
from ops_pipeline.analysis.findings import findings_of
from ops_pipeline.analysis.protocol import Ending, Outcome, Progress, Request
from ops_pipeline.analysis.static.processes import Limits, ToolFailed, run_tool
from ops_pipeline.analysis.static.server import Analyzer, serve_static
from ops_pipeline.analysis.static.tools import Tool, analysis_of
from ops_pipeline_tests.analysis.applications import CARELESS, CLEAN, application
from ops_pipeline_tests.servers import free_port, wait_until

REQUEST = Request("r1", "static-analyzer", "openai/gpt-4o", 0)
SLEEPS = "import time; time.sleep(60)"


def served(root: Path, use: Callable[[str], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """What `use` returns, given the URL of a static analyzer over a folder."""

    async def run() -> Any:
        service = Analyzer(root, **settings)
        server = await serve_static(service, "127.0.0.1", 0)
        try:
            return await use(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


def analysed(root: Path, request: Request = REQUEST, told: list[Progress] | None = None, **settings: Any) -> Outcome:
    heard: list[Progress] = [] if told is None else told
    return served(root, lambda url: analyze(url, request, timeout_seconds=60, told=heard.append), **settings)


def python_tool(name: str, code: str) -> Tool:
    """A tool that runs Python code instead."""
    return Tool(name, "1", lambda _: [sys.executable, "-c", code], dict)


def test_ruff_and_bandit_run_over_the_sources_and_answer_in_sarif(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    told: list[Progress] = []
    outcome = analysed(tmp_path, told=told)
    assert outcome.ending is Ending.COMPLETED
    assert outcome.reply is not None
    assert outcome.reply["id"] == "r1"
    found = findings_of(outcome.reply["analysis"])
    assert {tool.name: tool.status for tool in found.tools} == {"ruff": "success", "bandit": "success"}
    assert {one.file_path for one in found.findings} == {"backend/app.py"}
    rules = {(one.tool, one.rule_id): one for one in found.findings}
    assert rules["ruff", "F401"].line_number == 1
    assert rules["bandit", "B602"].severity == "high"
    assert rules["bandit", "B602"].confidence == "high"
    assert rules["bandit", "B105"].severity == "low"
    assert [one.stage for one in told] == ["scanning", "scanning", "reporting"]
    assert [one.percent for one in told] == [0, 50, 100]


def test_clean_sources_have_no_findings(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0, app=CLEAN)
    outcome = analysed(tmp_path)
    assert outcome.ending is Ending.COMPLETED
    assert outcome.reply is not None
    assert outcome.reply["analysis"]["summary"]["total_issues_found"] == 0


def test_sources_that_no_parser_takes_are_a_partial_result(tmp_path: Path) -> None:
    """Bandit leaves out what it cannot parse, and calls that a success."""
    application(tmp_path, "openai_gpt-4o", 0, app=CARELESS, broken="def broken(:\n")
    outcome = analysed(tmp_path)
    assert outcome.ending is Ending.PARTIAL
    assert outcome.message == "bandit: 1 files could not be read: backend/broken.py"


def test_a_model_with_a_slash_may_be_one_folder_or_two(tmp_path: Path) -> None:
    application(tmp_path, "openai/gpt-4o", 0)
    assert analysed(tmp_path).ending is Ending.COMPLETED


def test_only_the_tools_that_are_asked_for_run(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    outcome = analysed(tmp_path, replace(REQUEST, tools=("Ruff",)))
    assert outcome.reply is not None
    assert outcome.reply["analysis"]["tools_used"] == ["ruff"]


def test_rules_may_be_chosen(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    config = {"ruff": {"select": ["F", "S"], "ignore": ["S602"]}, "bandit": {"skips": ["B602"]}, "template_slug": "x"}
    outcome = analysed(tmp_path, replace(REQUEST, config=config))
    assert outcome.reply is not None
    rules = {one.rule_id for one in findings_of(outcome.reply["analysis"]).findings}
    assert {"F401", "S105", "B105"} <= rules
    assert not rules & {"S602", "B602", "B006"}


def test_settings_among_the_sources_are_not_heard(tmp_path: Path) -> None:
    """A generated application switched off the tests that it failed."""
    folder = application(tmp_path, "openai_gpt-4o", 0)
    (folder / ".bandit").write_text("[bandit]\nskips: B105,B602\n")
    (folder / "pyproject.toml").write_text('[tool.ruff]\nexclude = ["*"]\n[tool.ruff.lint]\nselect = []\n')
    outcome = analysed(tmp_path)
    assert outcome.reply is not None
    assert {"F401", "B105", "B602"} <= {one.rule_id for one in findings_of(outcome.reply["analysis"]).findings}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": ("zap",)}, "no valid tool: zap; there are bandit, ruff"),
        ({"tools": ("ruff", "zap")}, "no valid tool: zap; there are bandit, ruff"),
        ({"model_slug": "nobody"}, "there are no sources of nobody app 0"),
        ({"app_number": 7}, "there are no sources of openai/gpt-4o app 7"),
        ({"app_number": -1}, "names no application"),
        ({"model_slug": "../../etc"}, "is no model slug"),
        ({"model_slug": "a/../b"}, "is no model slug"),
        ({"model_slug": "/etc"}, "is no model slug"),
        ({"model_slug": "a\0b"}, "is no model slug"),
        ({"model_slug": "leads_out"}, "leads_out/app0 leads out of the folder of applications"),
        ({"config": {"ruff": {"select": ["--config=/etc/passwd"]}}}, "config.ruff.select is no list of rules"),
        ({"config": {"ruff": {"fix": True}}}, "config.ruff.fix is unknown; there are ignore, select"),
        ({"config": {"ruff": "all"}}, "config is no object with an object for each tool"),
        ({"config": {"zap": {}}}, "config.zap is of no tool"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Above all: no tool that is meant never becomes all tools."""
    root = tmp_path / "apps"
    application(root, "openai_gpt-4o", 0)
    application(tmp_path, "elsewhere", 0)
    (root / "leads_out").symlink_to(tmp_path / "elsewhere")
    outcome = analysed(root, replace(REQUEST, **changes))
    assert outcome.ending is Ending.REFUSED
    assert message in outcome.message


def test_a_source_that_is_a_link_elsewhere_is_refused(tmp_path: Path) -> None:
    """Findings quote lines: a link to another file of the machine would show it."""
    folder = application(tmp_path / "apps", "openai_gpt-4o", 0)
    (tmp_path / "secret.py").write_text('PASSWORD = "of somebody else"\n')
    (folder / "innocent.py").symlink_to(tmp_path / "secret.py")
    outcome = analysed(tmp_path / "apps")
    assert outcome.message == "innocent.py is a link that leads out of the application's folder"


def test_a_link_within_the_application_is_read(tmp_path: Path) -> None:
    folder = application(tmp_path, "openai_gpt-4o", 0)
    (folder / "again.py").symlink_to(folder / "backend" / "app.py")
    assert analysed(tmp_path).ending is Ending.COMPLETED


def test_it_says_how_it_is(tmp_path: Path) -> None:
    assert served(tmp_path, check_health) == Health(healthy=True, tools=("bandit", "ruff"))
    assert not served(tmp_path, check_health, tools={}).healthy
    assert not served(tmp_path / "gone", check_health).healthy


def test_without_any_tool_it_refuses(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    assert "no tool is installed" in analysed(tmp_path, tools={}).message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no memory')", "ended with exit status 1: no memory"),
        ("print('[]')", "its output is no SARIF"),
        ("print('not JSON')", "Expecting value"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal 9: it said nothing"),
        (SLEEPS, "took longer than 2 s"),
        ("print('x' * 2**21)", "wrote more than 1 MiB"),
        ("x = bytearray(2**30)", "MemoryError"),
    ],
)
def test_a_tool_that_fails_leaves_the_others_a_partial_result(tmp_path: Path, code: str, message: str) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    sound = python_tool("sound", 'print(\'{"runs": [{"tool": {"driver": {"name": "sound"}}, "results": []}]}\')')
    limits = Limits(seconds=2, memory=2**29, output=2**20)
    outcome = analysed(tmp_path, tools={"sound": sound, "odd": python_tool("odd", code)}, limits=limits)
    assert outcome.ending is Ending.PARTIAL
    assert message in outcome.message
    assert outcome.reply is not None
    assert outcome.reply["analysis"]["tools_used"] == ["sound"]


def test_when_every_tool_fails_the_analysis_failed(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    outcome = analysed(tmp_path, tools={"odd": python_tool("odd", "raise SystemExit(3)")})
    assert outcome.ending is Ending.FAILED
    assert analysis_of({}, [])["status"] == "success"


def test_a_tool_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="cannot be started: No such file"):
        asyncio.run(run_tool(["/no/such/tool"], tmp_path, Limits()))


def test_a_tool_sees_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = "import os; print(sorted(os.environ))"
    output = asyncio.run(run_tool([sys.executable, "-c", code], tmp_path, Limits()))
    assert b"OPENAI" not in output


def sleeping(marker: str) -> list[psutil.Process]:
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if marker in " ".join(process.info["cmdline"] or [])]


@pytest.mark.parametrize("how", ["closes", "cancels"])
def test_tools_end_with_the_connection(tmp_path: Path, how: str) -> None:
    """Tools of tasks that nobody waited for any more went on for minutes."""
    application(tmp_path, "openai_gpt-4o", 0)
    marker = f"marker_{how}_{os.getpid()}"
    # A grandchild too, as tools have them.
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEPS}  # {marker}']) # {marker}"

    async def use(url: str) -> None:
        async with connect(url) as connection:
            await connection.send(REQUEST.frame(datetime.now(UTC)))
            await asyncio.to_thread(wait_until, lambda: len(sleeping(marker)) == 2, 20, "the tool to run")
            if how == "cancels":
                await connection.send(json.dumps({"type": "cancel_request", "id": "r1"}))
                frames = [json.loads(frame) async for frame in connection]
                assert frames[-1]["message"] == "cancelled"
        await asyncio.to_thread(wait_until, lambda: not sleeping(marker), 20, "the tool to end")

    served(tmp_path, use, tools={"slow": python_tool("slow", code)})


def test_analyses_beyond_the_limit_wait_and_say_so(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    slow = python_tool("slow", 'import time; time.sleep(0.5); print(\'{"runs": [{"results": []}]}\')')
    stages: list[list[str]] = [[], []]

    async def use(url: str) -> list[Outcome]:
        talks = [
            analyze(
                url, replace(REQUEST, id=f"r{n}"), timeout_seconds=30, told=lambda one, n=n: stages[n].append(one.stage)
            )
            for n in range(2)
        ]
        return list(await asyncio.gather(*talks))

    outcomes = served(tmp_path, use, tools={"slow": slow}, at_once=asyncio.Semaphore(1))
    assert [one.ending for one in outcomes] == [Ending.COMPLETED] * 2
    assert sorted(stage[0] for stage in stages) == ["queued", "scanning"]


def conversation(root: Path, *frames: str | bytes) -> list[dict[str, Any]]:
    async def use(url: str) -> list[dict[str, Any]]:
        async with connect(url) as connection:
            return [await _exchange(connection, frame) for frame in frames]

    return served(root, use)


async def _exchange(connection: ClientConnection, frame: str | bytes) -> dict[str, Any]:
    await connection.send(frame)
    return json.loads(await connection.recv())


def test_it_takes_everything_that_clients_of_the_protocol_say(tmp_path: Path) -> None:
    told = conversation(
        tmp_path, '{"type": "ping"}', "junk", b"\x00", "[]", '{"type": "dance"}', "{}", '{"type": "ping"}'
    )
    assert [one["type"] for one in told] == ["pong", *["error"] * 5, "pong"]
    assert told[4]["message"] == "the type 'dance' is unknown"


def test_one_connection_has_one_analysis(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)

    async def use(url: str) -> list[dict[str, Any]]:
        async with connect(url) as connection:
            for _ in range(2):
                await connection.send(REQUEST.frame(datetime.now(UTC)))
            return [json.loads(frame) async for frame in connection]

    told = served(tmp_path, use, tools={"slow": python_tool("slow", 'print(\'{"runs": [{"results": []}]}\')')})
    assert [one["message"] for one in told if one["type"] == "error"] == ["one analysis per connection"]
    assert told[-1]["type"] == "static_analysis_result"


@pytest.mark.parametrize("number", [True, "1", 1.5, None])
def test_an_app_number_is_a_whole_number(tmp_path: Path, number: Any) -> None:
    frame = json.dumps({"type": "static_analyze", "model_slug": "a", "app_number": number})
    assert conversation(tmp_path, frame)[0]["message"] == "app_number is no number"


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    application(tmp_path, "openai_gpt-4o", 0)
    port = free_port()
    command = [str(Path(sys.executable).parent / "ops-pipeline"), "analyzer", "static"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--apps", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        assert f"ws://127.0.0.1:{port}" in process.stdout.readline()
        assert asyncio.run(analyze(f"ws://127.0.0.1:{port}", REQUEST, timeout_seconds=60)).ending is Ending.COMPLETED
        taken = subprocess.run(
            [*command, "--port", str(port), "--apps", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert "cannot be listened on: " in taken.stderr
        assert taken.returncode == 1
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
    finally:
        process.kill()
        process.wait()


def test_the_command_wants_a_folder_of_applications(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "ops-pipeline"), "analyzer", "static"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 1
    assert "Name the folder of applications with --apps, or in GENERATED_APPS_DIR." in told.stderr
