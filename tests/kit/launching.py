"""Commands in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def launch(out: Path, overrides: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start the command in a session of its own, so that it can be killed with its children."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from fedshift.cli import main; main()",
            "simulate",
            *overrides,
            f"out={out}",
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
