"""Federations whose right advice is known by construction, to count how often it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedshift.protocol.lock import alone_in
from fedshift.runs.config import load
from fedshift.runs.simulate import run_folder
from fedshift.runs.watching import Tell, Watch
from fedshift.server.advice.rules import Advice, advise
from fedshift.server.report.run import read_run
from fedshift.strategies.base import Family

COMMON = (
    "federation.shift=0",
    "federation.unseen=[]",
    "federation.subjects=15",
    "federation.size=32",
    "method.depth=3",
    "rounds=3",
    "local_steps=32",
    "validate_every=0",
    "baselines=[]",
    "strategy=fedavg",
)
"""Four sites that train; about ten seconds of one core a run."""


@dataclass(frozen=True)
class Graded:
    """A federation and the family that is right for it because of how it was made."""

    name: str
    right: Family
    overrides: tuple[str, ...]


def _cardiac(name: str, right: Family, *overrides: str) -> Graded:
    return Graded(name, right, ("federation=cardiac_phantom", *overrides))


def _fetal(name: str, right: Family, *overrides: str) -> Graded:
    return Graded(name, right, ("federation=fetal_head_phantom", *overrides))


GRADED = (
    _cardiac("heart, no shift", "nothing"),
    _cardiac(
        "heart, sizes 4 to 1",
        "nothing",
        "federation.subjects={vendor_a: 40, vendor_b: 10, vendor_c: 10, vendor_d: 10}",
    ),
    _cardiac("heart, appearance 0.1", "harmonise", "federation.shift=0.1"),
    _cardiac("heart, appearance 0.25", "harmonise", "federation.shift=0.25"),
    _cardiac("heart, appearance 1", "harmonise", "federation.shift=1"),
    _cardiac("heart, structure 0.5", "personalise", "federation.structure_shift=0.5"),
    _cardiac("heart, structure 1", "personalise", "federation.structure_shift=1"),
    _cardiac("heart, mixed-up labels", "robust", "federation.faulty_sites={vendor_b: labels}"),
    _cardiac("heart, images of noise", "robust", "federation.faulty_sites={vendor_c: noise}"),
    _fetal("head, no shift", "nothing"),
    _fetal("head, appearance 1", "harmonise", "federation.shift=1"),
    _fetal("head, structure 1", "personalise", "federation.structure_shift=1"),
)


def advised(
    out: Path, seeds: Sequence[int], overrides: Sequence[str], tell: Tell, watch: Watch
) -> Iterator[tuple[Graded, dict[int, Advice]]]:
    """Run each graded federation with each seed under ``out``, those that are not finished, and
    yield it with the advice by seed. ``overrides`` come after each federation's own."""
    for number, graded in enumerate(GRADED, start=1):
        found = {}
        for seed in seeds:
            folder = out / f"{number:02d}_seed{seed}"
            tell(f"{graded.name}, seed {seed}")
            config = load([*COMMON, *graded.overrides, *overrides, f"seed={seed}"])
            config |= {"out": str(folder), "resume": True}
            with alone_in(folder):
                run_folder(folder, config, tell, watch, drawn=False)
            found[seed] = advise(read_run(folder).evidence)
        yield graded, found
