"""Labels that tell of some structures only: read, trained on, scored and reported as such."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case, segmentation
from kit.measured import DICE, SEGMENTATION
from scipy.stats import spearmanr

from fedshift import UserError
from fedshift.client.losses import SMOOTH, dice_ce
from fedshift.client.slices import LabelledSlices
from fedshift.client.worker import describe
from fedshift.server.shift import _label_shift, _total_variation
from fedshift.server.tables.correlation import rank_correlation
from fedshift.server.tables.files import read_cases, read_cross_site
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.fingerprint import fingerprint
from fedshift.sites.labels.annotation import never_shown
from fedshift.sites.types import IGNORED, Case, Domain, Federation, SiteData

# The loss


def by_loops(logits: np.ndarray, labels: np.ndarray, annotated: np.ndarray) -> float:
    """The loss in double precision, pixel by pixel."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    batch, classes, rows, columns = logits.shape
    crossed, count = 0.0, 0
    overlap, total = np.zeros(classes), np.zeros(classes)
    for b in range(batch):
        for r in range(rows):
            for c in range(columns):
                y = labels[b, r, c]
                if y == IGNORED:
                    continue
                told = annotated[b]
                q = p[b, y, r, c] if y else p[b, 0, r, c] + p[b, ~told, r, c].sum()
                crossed -= np.log(q)
                count += 1
                for k in np.flatnonzero(told[1:]) + 1:
                    overlap[k] += p[b, k, r, c] * (y == k)
                    total[k] += p[b, k, r, c] + (y == k)
    taught = np.flatnonzero(annotated[:, 1:].any(axis=0)) + 1
    dice = (2 * overlap[taught] + SMOOTH) / (total[taught] + SMOOTH)
    return float(1 - dice.mean() + crossed / count)


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of four classes, labels with pixels to ignore, and slices of four kinds."""
    rng = np.random.default_rng(seed)
    annotated = np.array(
        [[True, True, True, True], [True, True, False, False], [True, False, True, False]]
    )
    labels = rng.integers(0, 4, (3, 5, 6))
    for b in range(3):
        labels[b][~annotated[b][labels[b]]] = 0
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    return rng.normal(0, 3, (3, 4, 5, 6)), labels, annotated


@pytest.mark.parametrize("rows", [[0, 1, 2], [1], [1, 2], [0]])
def test_the_loss_by_loops(rows: list[int]) -> None:
    logits, labels, annotated = (array[rows] for array in batch(0))
    found = dice_ce(*(torch.from_numpy(array) for array in (logits, labels, annotated)))
    assert float(found) == pytest.approx(by_loops(logits, labels, annotated), rel=1e-5)


def test_its_gradient_by_differences() -> None:
    logits, labels, annotated = batch(1)
    tensor = torch.from_numpy(logits).requires_grad_()
    dice_ce(tensor, torch.from_numpy(labels), torch.from_numpy(annotated)).backward()
    assert tensor.grad is not None
    rng = np.random.default_rng(2)
    for _ in range(20):
        place = tuple(rng.integers(0, size) for size in logits.shape)
        ends = []
        for step in (1e-4, -1e-4):
            moved = logits.copy()
            moved[place] += step
            ends.append(by_loops(moved, labels, annotated))
        expected = (ends[0] - ends[1]) / 2e-4
        assert float(tensor.grad[place]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_pixels_to_ignore_have_no_gradient_and_a_batch_of_nothing_else_is_finite() -> None:
    logits, labels, annotated = (torch.from_numpy(array) for array in batch(3))
    logits.requires_grad_()
    dice_ce(logits, labels, annotated).backward()
    assert logits.grad is not None
    ignored = (labels == IGNORED).unsqueeze(1).expand_as(logits)
    assert ignored.any() and not logits.grad[ignored].any() and logits.grad[~ignored].any()
    assert torch.isfinite(dice_ce(logits, torch.full_like(labels, IGNORED), annotated))


def test_what_is_not_annotated_may_be_background_or_itself() -> None:
    """Moving probability between background and an unannotated class changes nothing."""
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    annotated = torch.tensor([[True, True, False]])
    one = torch.tensor([0.7, 0.1, 0.2]).log().view(1, 3, 1, 1).expand(1, 3, 2, 2)
    other = torch.tensor([0.2, 0.1, 0.7]).log().view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(dice_ce(one, labels, annotated), dice_ce(other, labels, annotated))


def a_case(label: np.ndarray, **changes: Any) -> Case:
    images = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    case = mask_case(
        images, label, id="c", subject="s", domain=Domain("v"), spacing_mm=(3.0, 1.0, 2.0)
    )
    return replace(case, **changes)


def test_a_batch_says_what_each_slice_annotates_and_complete_ones_say_nothing() -> None:
    label = np.zeros((3, 8, 8), np.uint8)
    task = segmentation("one", "two", "three")
    whole, partly = a_case(label), a_case(label, annotates=(2,))
    assert all(
        batch.told is None
        for batch in LabelledSlices([whole], task).batches(2, 3, 0, torch.device("cpu"))
    )
    slices = LabelledSlices([whole, partly, a_case(label, ignores=True)], task)
    seen = []
    for batch in slices.batches(9, 1, 0, torch.device("cpu")):
        assert batch.told is not None and batch.told.shape == (len(batch), 4)
        seen = sorted(batch.told.tolist())
    assert seen == [[True, False, True, False]] * 3 + [[True] * 4] * 6


# What is read

Folder = Callable[..., Path]
ORGANS = ("liver", "spleen")


def draw(
    rng: np.random.Generator, slices: int = 2, size: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """An image of two bright discs, the second the brighter, and a label of both: (i, j, k)."""
    rows, columns = np.mgrid[:size, :size]
    image = rng.normal(0, 0.05, (size, size, slices)).astype(np.float32)
    label = np.zeros((size, size, slices), np.uint8)
    for value, column in ((1, size // 4), (2, 3 * size // 4)):
        centre = size // 2 + rng.integers(-3, 4), column + rng.integers(-1, 2)
        disc = np.hypot(rows - centre[0], columns - centre[1]) < 4.5
        image[disc] += value
        label[disc] = value
    return image, label


@pytest.fixture
def table(tmp_path: Path) -> Folder:
    """A federation of files: ``drawn`` maps a site to the values that its people drew."""

    def make(drawn: dict[str, tuple[int, ...]], subjects: int = 5, **columns: Any) -> Path:
        lines = ["\t".join(["path", "label_path", "site", "subject", *columns])]
        rng = np.random.default_rng(5)
        for site, values in drawn.items():
            for number in range(subjects):
                image, label = draw(rng)
                label[~np.isin(label, values)] = 0
                name = f"{site}{number}"
                for suffix, array in (("", image), ("_seg", label)):
                    affine = np.diag([1.0, 1.0, 4.0, 1.0])
                    nibabel.save(
                        nibabel.Nifti1Image(array, affine), tmp_path / f"{name}{suffix}.nii.gz"
                    )
                cells = [f"{name}.nii.gz", f"{name}_seg.nii.gz", site, name]
                cells += [str(column.get(site, "")) for column in columns.values()]
                lines.append("\t".join(cells))
        path = tmp_path / "table.tsv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


LABELS = {"liver": 1, "spleen": 2}


def load(path: Path, **settings: Any) -> tuple[Federation, DataSettings]:
    config = {"manifest": str(path), "size": 24, "cache": path.parent / "cache", **settings}
    data = DataSettings.from_config(config)
    return load_federation({"kind": "manifest"}, data, 0), data


def opened(path: Path, site: str, **settings: Any) -> SiteData:
    federation, data = load(path, **settings)
    return open_site(federation.site(site), federation.parts, data, 0)


def told(data: SiteData) -> set[tuple[int, ...] | None]:
    return {case.annotates for split in data.splits.values() for case in split}


def test_the_setting_wins_over_the_column_and_that_over_label_values(table: Folder) -> None:
    path = table(
        {"a": (1,), "b": (2,), "c": (1, 2)},
        label_values={"a": "0=bg,1=liver", "b": "2=spleen", "c": "1=liver,2=spleen"},
    )
    assert [told(opened(path, site)) for site in "abc"] == [{(1,)}, {(2,)}, {None}]
    # Values are data.labels' alone, and so is what they annotate.
    assert told(opened(path, "a", labels=LABELS)) == {None}
    path = table({"a": (1,), "b": (1, 2)}, annotates={"a": "liver"})
    assert told(opened(path, "a", labels=LABELS)) == {(1,)}
    assert told(opened(path, "b", labels=LABELS)) == {None}
    both = {"a": list(ORGANS), "b": "spleen"}
    assert told(opened(path, "a", labels=LABELS, annotates=both)) == {None}
    found = opened(path, "b", labels=LABELS, annotates=both)
    assert told(found) == {(2,)}
    # What b drew of the liver is not background: nobody vouches for it.
    for case in found.splits["train"]:
        assert set(np.unique(mask(case))) == {0, 2}
    assert any("annotates spleen only" in note for note in found.notes)
    assert any("5 images show parts that they are not said" in note for note in found.notes)


def test_names_that_nobody_knows_are_named(table: Folder) -> None:
    path = table({"a": (1,)}, annotates={"a": "livre"})
    with pytest.raises(UserError, match=r"column annotates of .*a0.*'livre'; nearest: liver"):
        load(path, labels=LABELS)
    for given, said in (
        ({"x": ["liver"]}, "no site 'x'"),
        ({"a": ["kidney"]}, "no structure 'kidney'"),
        ({"a": []}, "must list the structures"),
        ("a", "must map a site"),
    ):
        with pytest.raises(UserError, match=said):
            load(path, labels=LABELS, annotates=given)
    path = table({"a": (1,), "b": (1,)}, label_values={"a": "1=Liver", "b": "1=liver"})
    with pytest.raises(UserError, match=r"'liver' and .* calls it 'Liver'; spell it alike"):
        load(path)


def test_a_site_that_never_shows_what_others_do_is_asked_about() -> None:
    shown = {"a": {"liver"}, "b": {"liver", "spleen"}, "c": set()}
    assert never_shown(shown, {}) == {"a": ["spleen"]}
    assert never_shown(shown, {"a": ("liver",)}) == {}


def test_the_cache_tells_annotations_apart(table: Folder) -> None:
    path = table({"a": (1, 2)})
    whole = opened(path, "a", labels=LABELS)
    partly = opened(path, "a", labels=LABELS, annotates={"a": ["liver"]})
    assert {2} <= set(np.unique(mask(whole.splits["train"][0])))
    assert set(np.unique(mask(partly.splits["train"][0]))) == {0, 1}


# What is told of it


def test_the_card_the_fingerprint_and_the_volumes(table: Folder) -> None:
    path = table({"a": (1, 2)}, subjects=6)
    partly = opened(path, "a", labels=LABELS, annotates={"a": ["liver"]})
    card = describe(partly, segmentation(*ORGANS))
    labelled = card.splits["train"]["labelled"]
    assert dict(card.teaches) == {"liver": labelled, "spleen": 0} and not card.complete
    assert card.labelled == ("liver",)
    volumes = {k: v and v[0] for k, v in fingerprint(partly)["parts"].items()}
    assert volumes["liver"] > 0 and volumes["spleen"] is None


def test_class_volumes_of_structures_that_some_cases_annotate() -> None:
    described = segmentation(*ORGANS).described
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    second = rng.integers(0, 2, (6, 8, 8)).astype(np.uint8)
    second[:, :2] = IGNORED
    whole = described([a_case(first)], 2)
    np.testing.assert_allclose(
        whole, [np.count_nonzero(first == k) * 6.0 / 1000 for k in range(3)], rtol=1e-12
    )
    partly = a_case(second, annotates=(1,), ignores=True)
    found = described([a_case(first), partly], 2)
    assert found is not None
    total = (np.count_nonzero(first != IGNORED) + np.count_nonzero(second != IGNORED)) * 6 / 1000
    liver = np.count_nonzero(first == 1) + np.count_nonzero(second == 1)
    spleen = np.count_nonzero(first == 2) / first.size * total
    np.testing.assert_allclose(found[1:], [liver * 6 / 1000, spleen], rtol=1e-12)
    assert found.sum() == pytest.approx(total)
    only = described([partly], 2)
    assert only is not None and np.isnan(only[2]) and only[1] > 0


def test_label_shift_compares_what_both_sites_annotate() -> None:
    both, liver, spleen = [90.0, 6.0, 4.0], [92.0, 8.0, np.nan], [90.0, np.nan, 10.0]
    own, others = np.array(liver), np.array([both, spleen])
    assert _total_variation(own, others)[0] == pytest.approx(0.02)
    assert _label_shift(own, others)[0] == pytest.approx(0.02 / 0.08)
    assert np.isnan(_total_variation(own, others)[1])


def test_the_drop_is_over_structures_that_both_sites_score() -> None:
    values = {
        ("a", "a"): {"liver": 0.9},
        ("a", "b"): {"liver": 0.7, "spleen": 0.1},
        ("a", "c"): {"liver": 0.5},
        ("b", "b"): {"liver": 0.8, "spleen": 0.6},
        ("b", "a"): {"liver": 0.75},
        ("b", "c"): {"liver": 0.4},
        ("c", "c"): {"liver": 0.8},
        ("c", "a"): {"liver": 0.5},
        ("c", "b"): {"liver": 0.4},
    }
    rows = [
        {
            "model": "local",
            "trained_on": home,
            "site": site,
            "vendor": "v",
            "part": name,
            "metric": "dice",
            "mean": value,
        }
        for (home, site), found in values.items()
        for name, value in found.items()
    ]
    drops = {("a", "b"): 0.2, ("a", "c"): 0.4, ("b", "a"): 0.05, ("b", "c"): 0.4}
    drops |= {("c", "a"): 0.3, ("c", "b"): 0.4}
    distances = {("a", "b"): 0.125, ("a", "c"): 0.35, ("b", "c"): 0.4}
    shift = [
        {"site_a": a, "site_b": b, "metric": "m", "value": d} for (a, b), d in distances.items()
    ]
    (found,) = rank_correlation(shift, rows, DICE)
    apart = [distances.get(pair, distances.get(pair[::-1])) for pair in drops]
    expected = spearmanr(apart, list(drops.values())).statistic
    assert found.rho == pytest.approx(expected)


# A run

RUN = (
    "federation=manifest",
    "data.labels={liver: 1, spleen: 2}",
    "data.size=24",
    "method.batch=8",
    "validate_every=0",
    "baselines=[]",
    "engine.devices=cpu",
    "engine.workers=1",
)


SMALL = ("method.depth=2", "method.width=8")


def run(path: Path, out: Path, *overrides: str) -> Path:

    from fedshift.protocol.lock import alone_in
    from fedshift.runs.config import load as compose
    from fedshift.runs.simulate import run as simulate

    with alone_in(out):
        small = [] if "method=online_rendering" in overrides else SMALL
        config = compose([*RUN, *small, f"data.manifest={path}", *overrides])
        simulate(out, config, drawn=False)
    return out


def mean(folder: Path, model: str, site: str, structure: str) -> float:
    (value,) = (
        row["mean"]
        for row in read_cross_site(folder / "cross_site.csv", SEGMENTATION)
        if (row["model"], row["site"], row["part"], row["metric"])
        == (model, site, structure, "dice")
    )
    return float(value)


def test_an_undrawn_organ_is_learnt_from_others_and_scored_nowhere_else(
    table: Folder, tmp_path: Path
) -> None:
    path = table({"a": (1,), "b": (2,), "c": (1, 2), "d": (1,)}, subjects=4)
    settings = ["data.unseen_sites=[c]", "rounds=10", "local_steps=12"]
    silent = run(path, tmp_path / "silent", *settings, "data.accept=all")
    annotates = "data.annotates={a: [liver], b: [spleen], d: [liver]}"
    said = run(path, tmp_path / "said", *settings, annotates)
    for organ in ORGANS:
        assert mean(said, "global", "c", organ) > 0.8
    # Two of three sites taught the silent federation that there is no spleen.
    assert mean(silent, "global", "c", "spleen") < mean(said, "global", "c", "spleen") - 0.3


def test_a_model_is_scored_on_what_it_was_taught_at_images_that_show_it(
    table: Folder, tmp_path: Path
) -> None:
    path = table({"a": (1,), "b": (2,), "c": (1, 2), "d": (1,)}, subjects=3)
    settings = ["data.unseen_sites=[c]", "rounds=1", "local_steps=1", "baselines=[local]"]
    annotates = "data.annotates={a: [liver], b: [spleen], d: [liver]}"
    said = run(path, tmp_path / "said", *settings, annotates)
    scored = {
        (row["model"], row["trained_on"], row["site"], row["part"])
        for row in read_cases(said / "cases.csv", SEGMENTATION)
    }
    whole = {("global", "all")}
    expected = {("global", "all", "c", organ) for organ in ORGANS}
    expected |= {(*m, s, "liver") for m in whole | {("local", "a"), ("local", "d")} for s in "ad"}
    expected |= {(*m, "b", "spleen") for m in whole | {("local", "b")}}
    expected |= {("local", s, "c", "spleen" if s == "b" else "liver") for s in "abd"}
    assert scored == expected


def test_a_structure_that_no_training_site_annotates_is_refused(
    table: Folder, tmp_path: Path
) -> None:
    path = table({"a": (1,), "b": (1,), "c": (1, 2)}, subjects=3)
    with pytest.raises(UserError, match="no site that trains annotates 'spleen'"):
        run(
            path,
            tmp_path / "run",
            "data.unseen_sites=[c]",
            "data.annotates={a: [liver], b: [liver]}",
        )


def test_a_method_that_needs_every_structure_says_so(table: Folder, tmp_path: Path) -> None:
    path = table({"a": (1,), "b": (1, 2)}, subjects=3)
    with pytest.raises(
        UserError, match="method=online_rendering needs labels that tell of everything"
    ):
        run(
            path,
            tmp_path / "run",
            "method=online_rendering",
            "data.annotates={a: [liver]}",
        )


def test_explain_and_the_report_say_who_teaches_what(
    table: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedshift.cli.explain import explain
    from fedshift.server import report

    path = table({"a": (1,), "b": (1, 2), "c": (1, 2)}, subjects=3)
    settings = ["data.annotates={a: [liver]}", "data.unseen_sites=[c]"]
    explain([*RUN, *SMALL, f"data.manifest={path}", *settings])
    shown = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:4]] for row in shown}
    assert cells["a"] == ["3", "-"] and cells["b"] == ["3", "3"]
    assert cells["c (scored only)"] == ["3", "3"]
    out = run(path, tmp_path / "run", *settings, "rounds=1", "local_steps=1")
    page = report.build(out).read_text()
    assert "Who teaches what" in page and "annotates liver only" in page
