"""Flower's simulation on Ray gives the same bits as the inline engine.

Ray listens on all interfaces, so it runs here in a network of its own, and only as root.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedshift import UserError
from fedshift.server.engines import ray as engine


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install fedshift\[ray\]"):
        engine.run(None, None, 1, 1, 1)  # type: ignore[arg-type]


has_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None
    or os.geteuid() != 0
    or not shutil.which("unshare")
    or not shutil.which("ip"),
    reason="needs Ray, and root, unshare and ip, to keep it off the network",
)
CLUSTER = """
ip link set lo up
ray() { "$PYTHON" -m ray.scripts.scripts "$@" > /dev/null; }
export RAY_USAGE_STATS_ENABLED=0
ray start --head --node-ip-address=127.0.0.1 --port=6399 --num-cpus=1 --include-dashboard=false
ray start --address=127.0.0.1:6399 --node-ip-address=127.0.0.2 --num-cpus=1
"$@"
"""
"""Two nodes on loopback, whose processes end with the shell that they are below."""


@has_ray
@pytest.mark.parametrize("cluster", [False, True])
def test_ray_gives_the_bits_of_the_inline_engine(
    reference: Path, tiny: tuple[str, ...], tmp_path: Path, cluster: bool
) -> None:
    overrides = [text for text in tiny if not text.startswith("engine")]
    done = subprocess.run(
        [
            "unshare",
            *("--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            "sh",
            "-c",
            CLUSTER if cluster else 'ip link set lo up; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            "from fedshift.cli import main; main()",
            "simulate",
            *overrides,
            "strategy=fedavg",
            "engine=ray",
            "engine.address=auto" if cluster else "engine.workers=1",
            f"out={tmp_path / 'run'}",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("checkpoints/round_0002.safetensors", "cases.csv", "shift.csv", "egress.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (reference / name).read_bytes(), name


@has_ray
def test_a_cluster_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers at engine\.address=auto"):
        engine.run(None, None, 1, 1, 1, "auto")  # type: ignore[arg-type]
