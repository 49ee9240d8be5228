"""How long a newcomer waits: for ``fedshift --help``, and for ``fedshift demo``.

Run with ``python benchmarks/startup.py``. The help is timed against ``python -c "import torch"``,
five times each in turn, after one of each to warm the disk cache; the medians count. The demo runs
once, with an empty cache of images and in an empty folder: training and scoring take most of it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import print_table, verdict

FEDSHIFT = Path(sys.executable).with_name("fedshift")
TURNS = 5


def seconds(command: Sequence[str], folder: str) -> float:
    """How long ``command`` takes in ``folder``; raises when it fails."""
    start = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "FEDSHIFT_CACHE": f"{folder}/cache"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> int:
    """Print seconds; return 1 when a target is missed."""
    commands = {
        "fedshift --help": [str(FEDSHIFT), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS + 1):
            for name, command in commands.items():
                elapsed = seconds(command, folder)
                if turn:
                    took[name].append(elapsed)
        demo = seconds([str(FEDSHIFT), "demo"], folder)
    medians = {name: statistics.median(found) for name, found in took.items()}
    print_table(
        ["command", "wall s"],
        [(name, f"{value:.2f}") for name, value in {**medians, "fedshift demo": demo}.items()],
    )
    ratio = medians["fedshift --help"] / medians["import torch"]
    met = [
        verdict("\nfedshift --help / import torch", ratio, 0.2),
        verdict("fedshift demo", demo, 120, unit=" s"),
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
