"""Sources of generated applications, with findings that are known."""

from __future__ import annotations

from pathlib import Path

CLEAN = "def add(first: int, second: int) -> int:\n    return first + second\n"
CARELESS = (
    "import os\n"
    "import subprocess\n"
    'PASSWORD = "hunter2"\n'
    "def run(command, seen=[]):\n"
    "    subprocess.call(command, shell=True)\n"
)


def application(root: Path, model: str, number: int, **sources: str) -> Path:
    """Write an application; the names of sources without their suffix."""
    folder = root / model / f"app{number}"
    for name, source in (sources or {"app": CARELESS}).items():
        path = folder / "backend" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder
