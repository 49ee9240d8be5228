"""Paper 01, Unet-GAN: its Table 1 on the cardiac phantoms, with what the paper leaves out.

The paper compares a clean U-Net, a noise-augmented one and Unet-GAN on two target vendors. Beside
them stand here what it lacks: a U-Net trained with random changes of contrast, brightness, gamma,
blur and noise, one trained on the target's own labels (the reference of what can be recovered), and
the federated form that halves the number of rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fedshift.papers.bench import Bench, Claim, Paper, Table

SOURCE, WORSE, MILDER = "vendor_a", "vendor_c", "vendor_b"
COLUMNS = {SOURCE: "source", WORSE: "worse target", MILDER: "milder target"}
RECOVERED = "recovered, {}"

CLEAN, NOISY, GAN = "clean U-Net", "noisy U-Net", "Unet-GAN"
STALE = "Unet-GAN, stale, 2 local steps"
AUGMENTED = "appearance-augmented U-Net"
REFERENCE = "U-Net with the target's labels"

NOISE = "augmentation.noise=0.5"
UNLABELLED = f"data.unlabelled_sites=[{MILDER},{WORSE}]"
# As many subjects as the paper has from Philips.
SMALL = ("federation=cardiac_phantom", "federation.subjects=44")
FULL = ("federation=cardiac_phantom", "federation.size=192", "federation.subjects=50")


def measure(bench: Bench, seed: int) -> Table:
    """The table of one seed: Dice, mean over structures, and shares of the gap recovered."""
    common = SMALL if bench.preset == "small" else FULL
    supervised = (*common, "method=supervised", "baselines=[]")
    if bench.preset == "small":
        supervised += ("rounds=5",)  # as many as the method gives the U-Net

    def scores(name: str, *overrides: str) -> dict[str, float]:
        return bench.scores(bench.simulate(name, seed, overrides))

    exact = bench.simulate("unet_gan", seed, (*common, "method=unet_gan", UNLABELLED))
    rows = {
        CLEAN: bench.scores(exact, model="source"),
        NOISY: scores("noise", *supervised, UNLABELLED, NOISE),
        AUGMENTED: scores("appearance", *supervised, UNLABELLED, *_appearance()),
        GAN: bench.scores(exact),
        STALE: scores("stale", *common, "method=unet_gan", UNLABELLED, *_half_the_rounds(bench)),
    }
    alone = bench.simulate("reference", seed, (*supervised, "strategy=local"))
    rows[REFERENCE] = {
        site: bench.scores(alone, model="local", trained_on=site)[site] for site in COLUMNS
    }
    return _with_recovered(rows)


def _appearance() -> Sequence[str]:
    return "augmentation.intensity=1.0", NOISE


def _half_the_rounds(bench: Bench) -> Sequence[str]:
    segmenter, translation = (5, 150) if bench.preset == "small" else (35, 15000)
    return (
        "method.form=stale",
        "method.local_iterations=2",
        f"method.translation_rounds={translation}",
        f"rounds={segmenter + translation}",
    )


def _with_recovered(rows: dict[str, dict[str, float]]) -> Table:
    """Dice by column and, of each target, (Dice - clean) / (reference - clean)."""
    table = {}
    for name, scores in rows.items():
        table[name] = {column: scores[site] for site, column in COLUMNS.items()}
        for site in (WORSE, MILDER):
            clean, reference = rows[CLEAN][site], rows[REFERENCE][site]
            share = (scores[site] - clean) / (reference - clean)
            table[name][RECOVERED.format(COLUMNS[site])] = share
    return table


def _rising(*names: str) -> Claim:
    """That each row is above the one before on both targets."""

    def holds(table: Table) -> bool:
        return all(
            table[low][COLUMNS[site]] < table[high][COLUMNS[site]]
            for low, high in pairwise(names)
            for site in (WORSE, MILDER)
        )

    return Claim(f"{' < '.join(names)}, on both targets", holds)


def _share(table: Table, name: str) -> float:
    return table[name][RECOVERED.format(COLUMNS[WORSE])]


PAPER = Paper(
    number="01",
    title="Unet-GAN: vendor adaptation of a segmentation network",
    citation=(
        "Yan et al., The Domain Shift Problem of Medical Image Segmentation and Vendor-Adaptation "
        "by Unet-GAN, MICCAI 2019, Table 1"
    ),
    published={
        CLEAN: {"source": 0.892, "worse target": 0.474, "milder target": 0.727},
        NOISY: {"source": 0.877, "worse target": 0.502, "milder target": 0.813},
        GAN: {"worse target": 0.805, "milder target": 0.867},
    },
    measure=measure,
    claims=(
        _rising(CLEAN, NOISY, GAN),
        _rising(CLEAN, GAN),
        _rising(NOISY, GAN),
        _rising(AUGMENTED, GAN),
        Claim(
            "Unet-GAN recovers at least 0.60 of the worse target's gap",
            lambda table: _share(table, GAN) >= 0.6,
        ),
        Claim(
            "stale gradients with two local steps keep at least 0.7 of the exact form's gain on "
            "the worse target",
            lambda table: _share(table, STALE) >= 0.7 * _share(table, GAN),
        ),
    ),
    note=(
        "Mean Dice of the test split. The paper's source is Philips, its worse target Siemens and "
        "its milder one GE, and it reports one Dice of the left ventricle; ours are vendor_a, "
        "vendor_c and vendor_b of the cardiac phantoms and the mean over three structures. The "
        "paper has no reference trained on the target's labels, so no share recovered. Unet-GAN "
        "leaves the source's images as they are: there it is the clean U-Net."
    ),
)
