"""Every adaptation method through ``fedshift simulate`` under three strategies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.measured import SEGMENTATION

from fedshift.cli.simulate import simulate
from fedshift.server.tables.files import read_cross_site

COMMON = (
    "federation.subjects=6",
    "federation.slices=2",
    "federation.size=32",
    "local_steps=2",
    "evaluated=[global]",
    "baselines=[]",
    "engine.devices=cpu",
    "engine.workers=1",
)
METHODS = {
    "unet_gan": (
        "method.depth=3",
        "method.width=4",
        "method.translator_width=4",
        "method.judge_width=4",
        "method.judge_stages=2",
        "method.segmenter_rounds=1",
        "method.translation_rounds=2",
        "rounds=3",
        "data.unlabelled_sites=[vendor_b]",
    ),
    "online_rendering": (
        "method.renderer_width=4",
        "method.segmenter_width=4",
        "method.judge_width=4",
        "method.batch=2",
        "method.iterations=1",
        "rounds=2",
    ),
    "style_transfer": (
        "method.depth=3",
        "method.width=4",
        "method.translator_width=4",
        "method.translator_rounds=1",
        "rounds=2",
        "data.unlabelled_sites=[vendor_b]",
    ),
    "drai": ("method.depth=3", "method.width=4", "method.generation_rounds=1", "rounds=2"),
}
STAGES = {"unet_gan": {"source"}, "online_rendering": {"source", "iteration_0"}}
STRATEGIES = ("fedavg", "fedprox", "fedbn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a method at its smallest."""

    def call(*overrides: str) -> Path:
        out = tmp_path_factory.mktemp("run") / "run"
        simulate([*COMMON, *overrides, f"out={out}"])
        return out

    return call


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_under_every_strategy(
    run: Callable[..., Path], method: str, strategy: str
) -> None:
    out = run(f"method={method}", f"strategy={strategy}", *METHODS[method])
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        assert (line["failed"], line["rejected"], line["skipped"]) == ({}, {}, None)
    scored = read_cross_site(out / "cross_site.csv", SEGMENTATION)
    assert {row["site"] for row in scored} == {"vendor_a", "vendor_b", "vendor_c", "vendor_d"}
    assert {row["model"] for row in scored} >= {"global", *STAGES.get(method, set())}
    notes = json.loads((out / "checkpoints" / "evaluation.json").read_text())["problems"]
    # A site without labels has no volumes of structures to compare.
    assert [note for note in notes if not note.startswith("label_tv")] == []
    shown = json.loads((out / "figures" / "method.json").read_text())
    assert shown and all((out / "figures" / entry["file"]).is_file() for entry in shown)
    # Nothing but numbers leaves a site, and none as large as its images.
    pixels = 12 * 32 * 32
    for text in (out / "egress.jsonl").read_text().splitlines():
        left = json.loads(text)
        if left["action"] == "train.fit" and left["record"].startswith("statistics/"):
            size = 1
            for side in left["shape"]:
                size *= side
            assert size < pixels


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_back_projection_augments_under_every_strategy(
    run: Callable[..., Path], strategy: str
) -> None:
    out = run(
        "federation=ct_phantom",
        "augmentation=fbp",
        f"strategy={strategy}",
        "method.depth=3",
        "method.width=4",
        "rounds=1",
    )
    [line] = [json.loads(text) for text in (out / "rounds.jsonl").read_text().splitlines()]
    assert (line["failed"], line["rejected"], line["skipped"]) == ({}, {}, None)
