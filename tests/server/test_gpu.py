"""Several sites on one GPU; skipped without one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_sites_need_is_measured_and_given_back() -> None:
    from fedshift.client.memory import training_bytes

    def need(width: int) -> int:
        method = {"name": "supervised", "width": width, "depth": 3}
        return training_bytes(
            method, {"name": "segmentation", "parts": ["a", "b"]}, 1, 64, "cuda:0"
        )

    before = torch.cuda.memory_allocated()
    small, large = need(4), need(32)
    assert 2**20 < small < large
    assert torch.cuda.memory_allocated() == before


def test_two_sites_share_a_gpu_and_learn_what_they_learn_on_a_cpu(
    simulate: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    out = simulate(
        tmp_path / "run",
        "strategy=fedavg",
        "engine.devices=cuda:0",
        "engine.workers=2",
        "engine.amp=false",
    )
    found = load_file(out / "checkpoints" / "round_0001.safetensors")
    expected = load_file(reference / "checkpoints" / "round_0001.safetensors")
    assert found.keys() == expected.keys()
    distance = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
    assert distance < 0.02  # two steps of Adam at 4e-3 move no weight further than 0.008
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["site"] for row in rows} == {"vendor_a", "vendor_b", "vendor_c", "vendor_d"}


@pytest.mark.parametrize(
    "strategy", ["fedavg", "scaffold", "moon", "fedsam", "feddg", "harmofl", "apfl", "fedce"]
)
def test_mixed_precision_trains(
    strategy: str, simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    """Also with the local rules that look at scaled gradients or add passes of their own."""
    options = (f"strategy={strategy}", "engine.devices=cuda:0", "engine.amp=true")
    out = simulate_undrawn(tmp_path / "run", *options)
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    held = load_file(out / "checkpoints" / "round_0002.safetensors")
    assert all(np.isfinite(array).all() for array in held.values())
    weights = {name: array for name, array in held.items() if not name.startswith("state::")}
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
