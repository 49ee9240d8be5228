"""Images in which somebody looked and found nothing: read, trained on, and scored as such."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kit.cases import mask_case
from kit.measured import SEGMENTATION

from fedshift import UserError
from fedshift.client.metrics import score_case
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.server.tables.files import read_cases, read_cross_site
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.types import SiteData

# The measures


def components(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Components by flooding; neighbours share a face, an edge or a corner."""
    left = {tuple(int(k) for k in place) for place in np.argwhere(mask)}
    steps = list(product((-1, 0, 1), repeat=mask.ndim))
    found = []
    while left:
        front = [left.pop()]
        part = set(front)
        while front:
            place = front.pop()
            for step in steps:
                near = tuple(a + b for a, b in zip(place, step, strict=True))
                if near in left:
                    left.remove(near)
                    part.add(near)
                    front.append(near)
        found.append(part)
    return found


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_false_positives_by_flooding(seed: int, slices: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (slices, 9, 11)
    reference = (rng.random(shape) < 0.04).astype(np.uint8)
    prediction = ((rng.random(shape) < 0.08) | (reference & (rng.random(shape) < 0.5))).astype(
        np.uint8
    )
    prediction[rng.random(shape) < 0.03] = 2
    spacing = (3.0, 0.5, 0.8)
    for row, value in zip(
        score_case(reference, prediction, spacing, ["a", "b"], 2.0), (1, 2), strict=True
    ):
        truth, found = reference == value, prediction == value
        parts = components(found[0] if slices == 1 else found)
        shown = {tuple(int(k) for k in p) for p in np.argwhere(truth[0] if slices == 1 else truth)}
        assert row["false_positive_components"] == sum(not part & shown for part in parts)
        volume = np.count_nonzero(found & ~truth) * 1.2 / 1000
        assert row["false_positive_ml"] == pytest.approx(volume)


def test_specificity_is_of_the_negatives_and_dice_once_more_of_the_positives() -> None:
    size = (1, 8, 8)
    ill, healthy = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    ill[0, 2:4, 2:4] = 1
    finds = [ill, healthy, ill, healthy]
    cases = [
        mask_case(np.zeros(size, np.float32), mask, id=f"c{number}")
        for number, mask in enumerate((ill, ill, healthy, healthy))
    ]
    task = Segmentation(("lesion",), size=(8, 8))

    def scores(chosen: list[int]) -> list[dict[str, float]]:
        found = iter([finds[number] for number in chosen])

        def predict(images: np.ndarray) -> np.ndarray:
            mask = next(found)
            return np.stack([mask == 0, mask == 1], axis=1).astype(np.float32)

        rows = task.score([cases[number] for number in chosen], predict, ["lesion"])
        return [row.values for row in rows]

    all_four = scores([0, 1, 2, 3])
    np.testing.assert_equal([row["specificity"] for row in all_four], [np.nan, np.nan, 0, 1])
    np.testing.assert_equal([row["dice_positives"] for row in all_four], [1, 0, np.nan, np.nan])
    assert [row["dice"] for row in all_four] == [1, 0, 0, 1]
    # Where no case is negative there is nothing to tell apart.
    assert all(np.isnan(row["dice_positives"]) for row in scores([0, 1]))


# What is read

Maker = Callable[..., Path]
SIZE = 24


def spot(image: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc: np.ndarray = np.hypot(rows - place[0], columns - place[1]) < 4
    image[disc] += 1.5
    return disc


@pytest.fixture
def table(tmp_path: Path) -> Maker:
    """Sites a and b: every image shows a bright spot, a lesion where it is ill. Every second person
    of b is healthy and has a benign one, and an empty mask; the last of them none at all."""

    def make(column: str | None = None, subjects: int = 8) -> Path:
        rng = np.random.default_rng(3)
        lines = ["path\tlabel_path\tsite\tsubject\tempty"]
        for site in "ab":
            for number in range(subjects):
                healthy = site == "b" and number % 2 == 1
                image = rng.normal(0, 0.05, (SIZE, SIZE, 2)).astype(np.float32)
                label = np.zeros(image.shape, np.uint8)
                left, right = (12 + int(rng.integers(-2, 3)), 6), (12, 18)
                disc = spot(image, right if healthy else left)
                if not healthy:
                    label[disc] = 1
                name = f"{site}{number}"
                masked = not (healthy and number == subjects - 1)
                for suffix, array in (("", image), ("_seg", label)):
                    if suffix and not masked:
                        continue
                    affine = np.diag([1.0, 1.0, 4.0, 1.0])
                    nibabel.save(
                        nibabel.Nifti1Image(array, affine), tmp_path / f"{name}{suffix}.nii.gz"
                    )
                said = (column or "") if healthy else ""
                path = f"{name}_seg.nii.gz" if masked else ""
                lines.append(f"{name}.nii.gz\t{path}\t{site}\t{name}\t{said}")
        path = tmp_path / "table.tsv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def opened(path: Path, site: str, **settings: Any) -> SiteData:
    config = {"manifest": str(path), "size": SIZE, "cache": path.parent / "cache", **settings}
    data = DataSettings.from_config({"labels": {"lesion": 1}, **config})
    federation = load_federation({"kind": "manifest"}, data, 0)
    return open_site(federation.site(site), federation.parts, data, 0)


def labelled(data: SiteData) -> dict[str, bool]:
    return {
        case.subject: bool(case.labelled.all())
        for split in data.splits.values()
        for case in split
        if case.labelled.any()
    }


def test_empty_masks_are_unknown_unless_said_otherwise(table: Maker) -> None:
    path = table()
    unknown = opened(path, "b")
    assert sorted(labelled(unknown)) == ["b0", "b2", "b4", "b6"]
    assert any("3 images have an empty mask and count as unlabelled" in n for n in unknown.notes)
    negative = opened(path, "b", empty_masks="negative")
    # The setting is of masks that are empty; of the image without one only a row can say so.
    assert sorted(labelled(negative)) == [f"b{k}" for k in range(7)]
    assert all(labelled(negative).values())
    assert any("3 images have an empty mask and count as negative" in n for n in negative.notes)


def test_a_row_wins_over_the_setting(table: Maker) -> None:
    path = table("negative")
    assert sorted(labelled(opened(path, "b"))) == [f"b{k}" for k in range(8)]
    path = table("Unknown")
    assert sorted(labelled(opened(path, "b", empty_masks="negative"))) == ["b0", "b2", "b4", "b6"]
    with pytest.raises(UserError, match="column empty holds 'healthy'; write negative"):
        opened(table("healthy"), "b")
    with pytest.raises(UserError, match=r"data\.empty_masks must be unknown or negative"):
        opened(table(), "b", empty_masks="healthy")


def test_an_empty_slice_of_a_negative_volume_was_looked_at(tmp_path: Path) -> None:
    label = np.zeros((SIZE, SIZE, 3), np.uint8)
    label[4:9, 4:9, 1] = 1
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    lines = ["path\tlabel_path\tsite\tsubject"]
    for number in range(3):
        for suffix, array in (("", image), ("_seg", label)):
            affine = np.diag([1.0, 1.0, 4.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{number}{suffix}.nii.gz")
        lines.append(f"{number}.nii.gz\t{number}_seg.nii.gz\ta\t{number}")
    path = tmp_path / "table.tsv"
    path.write_text("\n".join(lines) + "\n")
    counts = [
        opened(path, "a", empty_masks=said).counts("train")["labelled"]
        for said in ("unknown", "negative")
    ]
    assert counts == [1, 3]


# A run


def test_false_positives_at_healthy_people_are_scored_and_shown(
    table: Maker, tmp_path: Path
) -> None:
    """A model of site a, where every bright spot is a lesion, finds the benign ones of b."""

    from fedshift.protocol.lock import alone_in
    from fedshift.runs.config import load
    from fedshift.runs.simulate import run as simulate
    from fedshift.server import report

    path, out = table("negative"), tmp_path / "run"
    overrides = [
        "federation=manifest",
        f"data.manifest={path}",
        "data.labels={lesion: 1}",
        f"data.size={SIZE}",
        "data.unseen_sites=[b]",
        "method.depth=2",
        "method.width=6",
        "augmentation.flip=true",
        "rounds=3",
        "local_steps=15",
        "validate_every=0",
        "baselines=[]",
        "engine.devices=cpu",
        "engine.workers=1",
    ]
    with alone_in(out):
        simulate(out, load(overrides), drawn=False)
    rows = [row for row in read_cases(out / "cases.csv", SEGMENTATION) if row["site"] == "b"]
    healthy = [row for row in rows if row["reference_volume_ml"] == 0]
    assert len(rows) == 8 and len(healthy) == 4
    assert all(row["false_positive_ml"] > 0 and row["failed"] for row in healthy)
    assert all(row["false_positive_components"] >= 1 for row in healthy)
    found = {
        row["metric"]: row["mean"]
        for row in read_cross_site(out / "cross_site.csv", SEGMENTATION)
        if row["site"] == "b"
    }
    assert found["specificity"] == 0 and found["dice_positives"] > 0.8
    assert found["dice"] == pytest.approx(found["dice_positives"] / 2)
    page = report.build(out).read_text()
    assert "Of some cases only" in page and "Specificity" in page


def test_phantoms_have_no_mask_that_could_be_empty() -> None:
    data = DataSettings.from_config({"empty_masks": "negative"})
    phantom = {"kind": "phantom", "anatomy": "cardiac", "shift": 0.5, "sites": {"a": "vendor_a"}}
    phantom |= {"subjects": 3, "slices": 1, "size": 32}
    with pytest.raises(UserError, match=r"data\.empty_masks is about a table"):
        load_federation(phantom, data, 0)
