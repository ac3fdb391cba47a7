"""A demonstration of the analysis lab for `make run`: applications, the static analyzer, tasks and a pipeline.

What belongs here: what the demonstration consists of. Everything of it has ids that begin with `demo_`, or belongs to
`pipeline_demo`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, func, insert, or_, select

from ops_pipeline.analysis.pipelines.control import submit_pipeline
from ops_pipeline.analysis.tables import analysis_tasks, generated_applications
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.errors import DatabaseProblem

PREFIX = "demo_"
PIPELINE = "pipeline_demo"
SERVICE = "static-analyzer"
MODELS = ("openai_gpt-4o", "anthropic_claude-sonnet", "meta_llama-3.1-70b")
PER_MODEL = 3
LOG = "demo-analyzer.log"
PATIENCE_SECONDS = 20.0

ROUTES = '''"""A list of things to do."""

import sqlite3

from flask import Flask, jsonify, request

app = Flask(__name__)


def connection():
    return sqlite3.connect("todo.db")


@app.get("/todos")
def todos():
    return jsonify(connection().execute("SELECT id, title, done FROM todos").fetchall())
'''
FLAWS = (
    """

@app.get("/search")
def search():
    words = request.args["q"]
    return jsonify(connection().execute(f"SELECT * FROM todos WHERE title LIKE '%{words}%'").fetchall())
""",
    """

SECRET_KEY = "dev-secret-key"


@app.post("/export")
def export(options=[]):
    import subprocess

    return subprocess.check_output("tar cz " + request.json["path"], shell=True)
""",
    """

@app.post("/import")
def import_todos():
    import pickle

    try:
        return jsonify(pickle.loads(request.data))
    except:
        pass
""",
)
RUN = """

if __name__ == "__main__":
    app.run(host="0.0.0.0", debug=True)
"""


@dataclass(frozen=True)
class DemoAnalyzer:
    """A running static analyzer; it ends with the process that started it, also when that became another program."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it now."""
        self.process.terminate()
        self.process.wait()


def has_real_tasks(engine: Engine) -> bool:
    """Whether there is a task or an application that is none of this module's."""
    tasks, applications = analysis_tasks.c, generated_applications.c
    foreign = tasks.id.not_like(f"{PREFIX}%"), func.coalesce(tasks.pipeline_id, "") != PIPELINE
    queries = (
        select(tasks.id).where(*foreign).limit(1),
        select(applications.id).where(applications.id.not_like(f"{PREFIX}%")).limit(1),
    )
    try:
        with reading(engine) as connection:
            return any(connection.execute(query).scalar() is not None for query in queries)
    except DatabaseProblem:
        # Whoever comes next tells what is wrong with the database.
        return True


def write_applications(root: Path) -> None:
    """Write the sources of the applications, each with other flaws; what is there already stays."""
    for model in MODELS:
        for number in range(PER_MODEL):
            backend = root / model / f"app{number}" / "backend"
            if not backend.exists():
                backend.mkdir(parents=True)
                (backend / "app.py").write_text(source_of(MODELS.index(model), number))
                (backend / "requirements.txt").write_text("flask\n")


def source_of(model: int, number: int) -> str:
    """The source of an application; no two models have the same flaws."""
    flaws = [flaw for place, flaw in enumerate(FLAWS) if (model + number + place) % 3 or number == PER_MODEL - 1]
    return ROUTES + "".join(flaws) + RUN


def submit(engine: Engine) -> int:
    """Submit the tasks and the pipeline, unless there are any; how many tasks there are then."""
    tasks = analysis_tasks.c
    applications = [(model, number) for model in MODELS for number in range(PER_MODEL)]
    with writing(engine) as connection:
        mine = or_(tasks.id.like(f"{PREFIX}%"), tasks.pipeline_id == PIPELINE)
        there = connection.execute(select(func.count()).where(mine)).scalar_one()
        if there:
            return there
        known = connection.execute(select(generated_applications.c.id).limit(1)).scalar()
        if known is None:
            rows = [
                {"id": f"{PREFIX}app_{model}_{number}", "model_slug": model, "app_number": number}
                for model, number in applications
            ]
            connection.execute(insert(generated_applications), rows)
        connection.execute(insert(analysis_tasks), _tasks(applications))
    submit_pipeline(engine, _pipeline(), pipeline_id=PIPELINE)
    return len(_tasks(applications))


def _tasks(applications: list[tuple[str, int]]) -> list[dict[str, object]]:
    priorities = ("normal", "high", "low", "urgent")
    rows: list[dict[str, object]] = [
        {
            "id": f"{PREFIX}{model}_app{number}",
            "service": SERVICE,
            "target": f"{model}/app{number}",
            "priority": priorities[place % len(priorities)],
            "options": {"tools": ["bandit"]} if place % 3 == 2 else None,
        }
        for place, (model, number) in enumerate(applications)
    ]
    # And what goes wrong in every lab: an application that is gone, and a tool that nobody has.
    gone = {
        "id": f"{PREFIX}gone",
        "service": SERVICE,
        "target": f"{MODELS[0]}/app9",
        "priority": "low",
        "options": None,
    }
    return [
        *rows,
        gone,
        {**gone, "id": f"{PREFIX}no_tool", "target": f"{MODELS[0]}/app0", "options": {"tools": ["zap"]}},
    ]


def _pipeline() -> dict[str, object]:
    applications = [f"{model}:{number}" for model in MODELS for number in range(PER_MODEL - 1)]
    steps = [
        {"name": "security", "services": SERVICE, "applications": applications, "tools": {SERVICE: ["bandit"]}},
        {"name": "style", "services": SERVICE, "applications_of": "security", "tools": {SERVICE: ["ruff"]}},
    ]
    return {"name": "three models, two looks", "steps": steps}


def start(folder: Path, apps: Path) -> tuple[DemoAnalyzer | None, str]:
    """Start the static analyzer on a free port of this machine.

    Args:
        folder: where it writes its log.
        apps: the folder of applications.

    Returns:
        The analyzer, and a sentence about it; None, and why there is none.
    """
    if not shutil.which("setpriv") or not shutil.which("setsid"):
        return None, "setpriv and setsid (Debian: util-linux) are missing, without which it might outlive us"
    program = [str(Path(sys.executable).parent / "ops-pipeline"), "analyzer", "static"]
    # Like the demo's Redis it ends when this process does, and not by Ctrl-C, before Dagster's runs have ended.
    command = ["setpriv", "--pdeathsig", "TERM", "setsid", *program, "--port", "0", "--apps", str(apps)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - no text of anybody else
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said = re.search(r"(ws://\S+)", (folder / LOG).read_text(errors="replace"))
        if said:
            return DemoAnalyzer(
                said[1], process
            ), f"the static analyzer that comes with the project answers at {said[1]}"
        time.sleep(0.05)
    process.kill()
    process.wait()
    return None, f"the static analyzer does not start (see {folder / LOG})"
