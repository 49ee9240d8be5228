"""Hung & Galeotti, 2021, Table 1: few labelled target images, with source images in target style.

The paper has many phantom scans and 99, 77, 55 or 33 labelled scans of pigs, and one computer. Here
two sites of one vendor are the source, and four, three, two or one small sites of another vendor
the target; four more of that vendor only test. All train by federated averaging, every site with
equal weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedshift.papers.bench import Bench, Claim, Paper, Table

SOURCE, TARGET = "vendor_a", "vendor_d"
SOURCES, TARGETS, TESTS = 2, 4, 4
COLUMNS = {4: "largest set (99)", 3: "77", 2: "55", 1: "smallest set (33)"}
"""Labelled target sites -> the paper's number of labelled images, by which a column is called."""

ALONE, RAW = "target", "target + source"
DETERMINISTIC = "target + source, deterministic style"
VARIATIONAL = "target + source, variational style"

ROUNDS, TRANSLATOR_ROUNDS = 12, 8
SIZES = {
    "small": (
        "federation.size=32",
        "federation.subjects=5",
        # Six training images a site: with fewer than four its policy withholds the style.
        "federation.slices=2",
        "method.depth=3",
        "local_steps=15",
    ),
    # The paper's sizes, on phantoms and without a file of VGG weights.
    "paper": (
        "federation.size=128",
        "federation.subjects=20",
        "federation.slices=6",
        "local_steps=500",
        "method.pretraining_rounds=0",
    ),
}
STYLE = (
    "method=style_transfer",
    f"rounds={ROUNDS + TRANSLATOR_ROUNDS}",
    f"method.translator_rounds={TRANSLATOR_ROUNDS}",
    # Every source slice is restyled, as the paper's are; the target's, whose style it is, are not.
    "method.restyled=1.0",
    "method.extractor=fixed",
    "method.perceptual=[0.0,0.0,1.0,1.0]",
    "method.style=[3e3,3e3,3e3,3e3]",
    "method.reconstruction=10.0",
)
ARMS: dict[str, tuple[str, ...]] = {
    ALONE: ("method=supervised", f"rounds={ROUNDS}"),
    RAW: ("method=supervised", f"rounds={ROUNDS}"),
    DETERMINISTIC: (*STYLE, "method.styles=deterministic"),
    VARIATIONAL: (*STYLE, "method.styles=observed"),
}


def measure(bench: Bench, seed: int) -> Table:
    """Dice at the sites that only test, the mean over structures and sites."""
    table: Table = {}
    for arm, settings in ARMS.items():
        table[arm] = {}
        for targets, column in COLUMNS.items():
            name = f"{arm.replace(' + ', '_').replace(', ', '_').replace(' ', '_')}_{targets}"
            sites = _names("target", targets)
            if arm != ALONE:
                sites += _names("source", SOURCES)
            overrides = [*settings, *_federation(sites), *SIZES[bench.preset]]
            if arm in (DETERMINISTIC, VARIATIONAL):
                named = ",".join(_names("target", targets))
                overrides.append(f"method.style_sites=[{named}]")
            run = bench.simulate(name, seed, overrides)
            table[arm][column] = _tested(bench, run)
    return table


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{number}" for number in range(1, count + 1)]


def _federation(training: Sequence[str]) -> list[str]:
    unseen = _names("test", TESTS)
    vendors = {name: SOURCE if name.startswith("source") else TARGET for name in training}
    vendors |= dict.fromkeys(unseen, TARGET)
    sites = ",".join(f"{name}:[{vendor}]" for name, vendor in vendors.items())
    return [
        "federation=fetal_head_phantom",
        f"federation.sites={{{sites}}}",
        f"federation.unseen=[{','.join(unseen)}]",
        "strategy.weighting=uniform",
        # The paper's rows without traditional augmentation.
        "augmentation.affine=false",
        "baselines=[]",
        "evaluated=[global]",
        "validate_every=0",
    ]


def _tested(bench: Bench, run: Path) -> float:
    scores = bench.scores(run)
    return sum(scores[name] for name in _names("test", TESTS)) / TESTS


def _beats(worse: str) -> Claim:
    return Claim(
        f"variational styles are above '{worse}', the mean over the sizes",
        lambda table: sum(table[VARIATIONAL].values()) > sum(table[worse].values()),
    )


PAPER = Paper(
    number="06",
    title="variational style transfer: few labelled target images",
    citation=(
        "Hung & Galeotti, Ultrasound Variational Style Transfer to Generate Images Beyond the "
        "Observed Domain, 2021, Table 1 (rows without augmentation; the mean of veins and arteries)"
    ),
    published={
        ALONE: {"largest set (99)": 0.82, "77": 0.78, "55": 0.08, "smallest set (33)": 0.03},
        RAW: {"largest set (99)": 0.095, "77": 0.295, "55": 0.16, "smallest set (33)": 0.005},
        DETERMINISTIC: {
            "largest set (99)": 0.86,
            "77": 0.925,
            "55": 0.71,
            "smallest set (33)": 0.435,
        },
        VARIATIONAL: {
            "largest set (99)": 0.96,
            "77": 0.915,
            "55": 0.695,
            "smallest set (33)": 0.495,
        },
    },
    measure=measure,
    claims=(
        _beats(ALONE),
        _beats(RAW),
        _beats(DETERMINISTIC),
        Claim(
            "with the smallest labelled set variational styles are above the target alone",
            lambda table: table[VARIATIONAL][COLUMNS[1]] > table[ALONE][COLUMNS[1]],
        ),
    ),
    note=(
        "A labelled set is here one to four target sites with three training subjects each; in "
        "brackets the paper's number of images. Its row of source images without transfer lies "
        "far below the target alone at 99 images, which looks like a failed training."
    ),
)
