"""The guides to a new method and a new task, as printed: their files are written into a copy of the
package, their commands run and their tests pass."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.repository import ROOT

_BLOCK = re.compile(r"(?:`([^`\n]+)`:\n\n)?```(\w*)\n(.*?)```", re.DOTALL)
Run = Callable[[str, str], str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Write the files of a page where it says, and run its commands and, after the text ``before``,
    the Python that it would have typed; returns what was printed.

    The copy is installed as a user's is: a new file is there once ``make install`` ran again. What
    it depends on is the tests' own."""
    code = tmp_path / "fedshift"
    left = shutil.ignore_patterns(".*", "build", "demo", "*.egg-info", "__pycache__")
    for name in ("client", "configs", "papers", "protocol", "server", "sites", "strategies", "cli"):
        shutil.copytree(ROOT / name, code / name, ignore=left)
    shutil.copytree(ROOT / "tests" / "kit", code / "tests" / "kit")
    (code / "runs").mkdir()
    for path in (*(ROOT / "runs").glob("*.py"), *ROOT.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, code / path.relative_to(ROOT))
    bins = code / ".venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bins.parent], check=True)
    own = next((bins.parent / "lib").glob("*/site-packages"))
    (own / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    asked = {
        # Which environment this one was made in is no matter of the copy's.
        **{key: value for key, value in os.environ.items() if key not in ("VENV", "MAKEFLAGS")},
        "PATH": f"{bins}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which pip reads as --no-build-isolation
        "FEDSHIFT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    asked.pop("PYTHONPATH", None)

    def typed(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=code, env=asked, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    typed("make", "install")
    # What the tests brought along has modules and no commands there.
    known = {"make": ("make",), "pytest": (bins / "python", "-m", "pytest")}

    def follow(page: str, before: str) -> str:
        printed = ""
        for name, language, text in _BLOCK.findall((ROOT / "docs" / page).read_text()):
            if name:
                (code / name).parent.mkdir(parents=True, exist_ok=True)
                (code / name).write_text(text)
            elif language == "python":
                printed += typed(bins / "python", "-c", before + text)
            elif not language:
                for line in text.splitlines():
                    command, *options = shlex.split(line, comments=True)
                    printed += typed(*known.get(command, (bins / command,)), *options)
        return printed

    return follow


def test_the_guide_to_a_new_method(run: Run, tmp_path: Path) -> None:
    printed = run("adding_a_method.md", "from fedshift.client.methods.fedper import FedPer\n")
    assert re.search(r"head\W+\d+\W+weights and biases\W+\d+\W+kept at the site", printed)
    assert "2 passed" in printed
    for name in ("fedper", "notebook"):
        folder = tmp_path / "fedshift" / "runs" / name
        assert "personal," in (folder / "cross_site.csv").read_text()
        assert (folder / "report.html").exists()
    cells = [*(tmp_path / "fedshift" / "runs" / "mean_teacher" / "cells").iterdir()]
    ends = {(cell / "checkpoints" / "round_0002.safetensors").read_bytes() for cell in cells}
    assert len(ends) == len(cells) == 6, "two strategies came to the same model"
    assert "follow the rule clipping (limit=0.5)" in printed
    assert (tmp_path / "fedshift" / "runs" / "clipped" / "report.html").exists()
    assert "model,trained_on,site," in printed, "the notebook shows its table"


def test_the_guide_to_a_new_task(run: Run, tmp_path: Path) -> None:
    printed = run("adding_a_task.md", "")
    assert re.search(r"area +area measurement +mask +supervised", printed)
    assert "3 passed" in printed
    folder = tmp_path / "fedshift" / "runs" / "area"
    page = (folder / "report.html").read_text()
    assert "area error" in page and "Dice" not in page
    with (folder / "cross_site.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {
        row["structure"]: float(row["mean"])
        for row in rows
        if (row["model"], row["site"]) == ("global", "vendor_a")
        and row["metric"] == "relative_error"
    }
    assert errors and all(error < 1 for error in errors.values()), errors
