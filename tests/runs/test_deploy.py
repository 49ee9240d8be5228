"""A deployed run has the bits of the simulated one: real sites, each with its own folder of images
and its own state, behind a grid without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit.sites import LocalGrid, open_sites

from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import Config, load
from fedshift.runs.deploy import deploy
from fedshift.runs.simulate import run
from fedshift.sites.example import labels, write_example

LABELS = "data.labels={" + ", ".join(f"{name}: {value}" for name, value in labels().items()) + "}"
SMALL = (
    "federation=manifest",
    LABELS,
    "method.depth=3",
    "method.width=4",
    "rounds=2",
    "local_steps=2",
    "engine.devices=cpu",
    "engine.workers=1",
)
GAN = (
    "baselines=[]",
    "data.unlabelled_sites=[hospital-2]",
    "method.segmenter_rounds=1",
    "rounds=3",
)
"""The least that its phases take."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of four sites, by name; beside them lies the table of all."""
    return write_example(tmp_path_factory.mktemp("example"), sites=4, subjects=5, slices=2, size=32)


@pytest.fixture(scope="module")
def simulated(
    example: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Simulate the example in one place, with further overrides."""

    def call(*overrides: str) -> Path:
        out = tmp_path_factory.mktemp("simulated") / "run"
        run(out, config(example, *overrides), drawn=False)
        return out

    return call


def config(example: dict[str, Path], *overrides: str) -> Config:
    """A simulation's config."""
    table = next(iter(example.values())).parent / "MANIFEST.tsv"
    return load([*SMALL, f"data.manifest={table}", "baselines=[local]", *overrides])


def same(deployed: Path, simulated: Path) -> None:
    """Assert that two runs have the same models and the same tables."""
    names = sorted(path.name for path in (simulated / "checkpoints").glob("round_*.safetensors"))
    assert names
    for name in names:
        a, b = (read_tensors(run / "checkpoints" / name) for run in (deployed, simulated))
        assert a.keys() == b.keys()
        assert all(a[key].tobytes() == b[key].tobytes() for key in a), name
    for name in ("cases.csv", "cross_site.csv", "shift.csv"):
        assert (deployed / name).read_bytes() == (simulated / name).read_bytes(), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedavg",),
        ("strategy=fedbn", "method.norm=batch"),
        ("strategy=scaffold",),
        ("method=unet_gan", *GAN),
    ],
    ids=["fedavg", "fedbn", "scaffold", "unet_gan"],
)
def test_a_deployed_run_has_the_bits_of_the_simulated_one(
    example: dict[str, Path],
    simulated: Callable[..., Path],
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    more = (*overrides, "data.unseen_sites=[hospital-4]")
    sites = open_sites(example, tmp_path / "sites")
    told: list[str] = []
    deploy(tmp_path / "run", config(example, *more), LocalGrid(sites), told.append, wait_s=0)
    same(tmp_path / "run", simulated(*more))
    assert any("each site's own" in sentence and "data.manifest" in sentence for sentence in told)
