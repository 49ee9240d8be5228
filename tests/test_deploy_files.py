"""The files of deploy/: their commands are the command's own, and the tools that read them, where
they are, find no fault."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kit.repository import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMPOSED = sorted(DEPLOY.glob("compose.*.yaml"))


def command(path: Path) -> list[str]:
    """The arguments of fedshift in a unit or a compose file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".service":
        (line,) = re.findall(r"^ExecStart=/usr/bin/env fedshift (.*)$", text, re.MULTILINE)
        return shlex.split(line)
    (service,) = yaml.safe_load(text)["services"].values()
    return [str(word) for word in service["command"]]


@pytest.mark.parametrize("path", [*UNITS, *COMPOSED], ids=lambda path: path.name)
def test_every_option_is_one_of_the_command(path: Path) -> None:
    words = command(path)
    known = subprocess.run(
        [sys.executable, "-c", "from fedshift.cli import main; main()", words[0], "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert options and all(f"{option} " in known for option in options)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_no_fault(path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd is installed here")
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and path.name not in done.stderr, done.stderr


@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_docker_compose_finds_no_fault(path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("no Docker Compose is installed here")
    subprocess.run([docker, "compose", "-f", path, "config", "--quiet"], check=True)
