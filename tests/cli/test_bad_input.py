"""What a user can get wrong: one sentence, exit code 2, and no earlier run is harmed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedshift.protocol import storage

Command = Callable[..., Any]
NIFTI = ("federation=manifest", "data.size=32", "rounds=1", "local_steps=1", "baselines=[]")
NET = ("method.depth=2", "method.width=2", "engine.devices=cpu", "engine.workers=1")


def assert_sentence(outcome: Any, *words: str) -> None:
    """One line on stderr that holds ``words``, exit code 2, no traceback."""
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("fedshift: ")
    assert "Traceback" not in outcome.err + outcome.out
    for word in words:
        assert word in outcome.err


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of ``folder`` by path."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class ImageSet:
    """Two sites of four volumes each with a disc to segment, and their table."""

    columns = ("path", "label_path", "site", "subject", "vendor")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[list[str]] = []
        random = np.random.default_rng(0)
        rows, columns = np.mgrid[:24, :24]
        disc = ((rows - 12) ** 2 + (columns - 11) ** 2 < 36)[..., None].repeat(4, axis=2)
        for site in ("north", "south"):
            for number in range(4):
                subject = f"{site}{number}"
                image = 100 * disc + random.normal(0, 5, disc.shape)
                self.save(f"{subject}.nii", image.astype(np.float32))
                self.save(f"{subject}_label.nii", disc.astype(np.uint8))
                row = [f"{subject}.nii", f"{subject}_label.nii", site, subject, site.upper()]
                self.rows.append(row)
        self.write()

    @property
    def table(self) -> Path:
        return self.folder / "MANIFEST.tsv"

    def save(self, name: str, array: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(array, np.diag([1, 1, 4, 1])), self.folder / name)

    def write(self, columns: tuple[str, ...] = columns) -> None:
        lines = [columns, *([*row][: len(columns)] for row in self.rows)]
        self.table.write_text("".join("\t".join(line) + "\n" for line in lines))

    def options(self, out: Path, *more: str) -> tuple[str, ...]:
        return ("simulate", *NIFTI, *NET, f"data.manifest={self.table}", f"out={out}", *more)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    folder = tmp_path / "images"
    folder.mkdir()
    return ImageSet(folder)


# The configuration.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ronds=3", ("ronds", "did you mean rounds?")),
        ("method.widht=3", ("method.widht", "method.width")),
        ("strategy=fedavgg", ("strategy=fedavgg", "fedavg")),
        ("federation=cardiac", ("federation=cardiac", "cardiac_phantom")),
        ("method=unet", ("method=unet", "unet_gan")),
        ("engine=inlin", ("engine=inlin", "inline")),
        ("engine.workers=0", ("engine.workers", "at least 1")),
        ("engine.devices=cuda:99", ("engine.devices", "cuda:99", "cpu")),
        ("rounds=0", ("rounds must be at least 1",)),
        ("rounds=many", ("rounds", "int")),
        ("rounds=1000001", ("rounds must be at most",)),
        (f"seed={2**63}", ("seed must be at most",)),
        ("protocol=leave_two_out", ("protocol", "leave_one_site_out")),
        ("baselines=[best]", ("baselines", "local, pooled")),
        ("strategy.fraction=2", ("strategy.fraction", "at most 1")),
        ("strategy.min_sites=9", ("strategy.min_sites is 9", "3 sites")),
        ("policy.release=[images]", ("policy.release", "images")),
        ("data.size=3", ("data.size", "8 to 4096")),
        ("data.unseen_sites=[vendor_x]", ("vendor_x", "vendor_b")),
        ("federation.shift=2", ("federation.shift",)),
        ("task.name=1e300", ("task=1e+300", "segmentation")),
        ("task.tolerance_mm=-1", ("task.tolerance_mm", "at least 0")),
        ("task.tolerance_mm=wide", ("task.tolerance_mm", "float")),
        ("data.columns.subject=all", ("data.columns.subject", "federation=manifest")),
        ("data.columns.subject=3", ("data.columns.subject", "name of a column")),
        ("data.manifest=images.tsv", ("data.manifest", "federation=manifest")),
        ("data.site_pattern=(a)", ("data.site_pattern", "federation=manifest")),
        ("data.split={train: 0.5, val: 0.5, test: 0}", ("data.split.test", "only val")),
        ("data.split={train: 0, val: 0.5, test: 0.5}", ("data.split.train", "only val")),
        ("data.split={train: 0.8, val: 0, test: 0.1}", ("data.split", "add up to 1")),
        ("just words", ("KEY=VALUE",)),
    ],
)
def test_a_wrong_option_is_named_with_what_is_near(
    command: Command, tiny: tuple[str, ...], tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    outcome = command("simulate", *tiny, f"out={tmp_path / 'run'}", override)
    assert_sentence(outcome, *words)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


# The manifest and its images.


def test_the_image_set_itself_is_fine(command: Command, images: ImageSet, tmp_path: Path) -> None:
    """Also: one broken image of many is left out and named, the run goes on."""
    (images.folder / "north1.nii").write_bytes(b"not an image")
    outcome = command(*images.options(tmp_path / "run"))
    assert outcome.code == 0 and "north1.nii" in outcome.out
    cards = json.loads((tmp_path / "run" / "checkpoints" / "sites.json").read_text())
    notes = {card["name"]: " ".join(card["notes"]) for card in cards}
    assert "left out" in notes["north"]
    assert "row 3: damaged" in notes["north"]
    assert "left out" not in notes["south"]
    page = (tmp_path / "run" / "report.html").read_text()
    # A path may hold a patient's name: it stays on this terminal.
    assert "row 3" in page and "north1.nii" not in page


def break_all(images: ImageSet, write: Callable[[Path], None]) -> None:
    for number in range(4):
        write(images.folder / f"north{number}.nii")


def to_nan(path: Path) -> None:
    array = np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32).copy()
    array[3, 4, 1] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no manifest", ("data.manifest is not set",)),
        ("absent manifest", ("nowhere.tsv", "does not exist")),
        ("binary manifest", ("MANIFEST.tsv", "cannot be read")),
        ("empty manifest", ("MANIFEST.tsv",)),
        ("missing column", ("MANIFEST.tsv", "'subject'")),
        ("file not found", ("north0.nii", "does not exist")),
        ("corrupt NIfTI", ("north0.nii", "not a readable NIfTI")),
        ("NaN image", ("north0.nii", "NaN")),
        ("other shape", ("north0_label.nii", "shape")),
        ("label outside the map", ("north0_label.nii", "7")),
        ("no label at all", ("label",)),
        ("more classes than labels", ("ghost", "no label file")),
        ("only unseen sites", ("no site trains",)),
    ],
)
def test_a_fault_in_the_data_is_one_sentence_that_names_it(
    command: Command, images: ImageSet, tmp_path: Path, fault: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    options: tuple[str, ...] = images.options(out)
    if fault == "no manifest":
        options = ("simulate", *NIFTI, f"out={out}")
    elif fault == "absent manifest":
        options = (*options, f"data.manifest={tmp_path / 'nowhere.tsv'}")
    elif fault == "binary manifest":
        images.table.write_bytes(bytes(range(128, 256)))
    elif fault == "empty manifest":
        images.table.write_text("")
    elif fault == "missing column":
        images.write(images.columns[:3])
    elif fault == "file not found":
        break_all(images, Path.unlink)
    elif fault == "corrupt NIfTI":
        break_all(images, truncate)
    elif fault == "NaN image":
        break_all(images, to_nan)
    elif fault == "other shape":
        for number in range(4):
            images.save(f"north{number}_label.nii", np.ones((9, 9, 4), np.uint8))
    elif fault == "label outside the map":
        images.save("north0_label.nii", np.full((24, 24, 4), 7, np.uint8))
        options = images.options(out, "data.labels={disc: 1}")
    elif fault == "no label at all":
        for row in images.rows:
            row[1] = ""
        images.write()
    elif fault == "more classes than labels":
        options = images.options(out, "data.labels={disc: 1, ghost: 5}")
    elif fault == "only unseen sites":
        options = images.options(out, "data.unseen_sites=[north, south]")
    assert_sentence(command(*options), *words)
    assert not (out / "rounds.jsonl").exists()


def test_a_site_with_nothing_to_test_on_trains_and_says_so(
    command: Command, images: ImageSet, tmp_path: Path
) -> None:
    """One image of a single slice cannot be cut into three splits."""
    images.save("north0.nii", np.random.default_rng(0).random((24, 24, 1), np.float32))
    images.save("north0_label.nii", np.eye(24, dtype=np.uint8)[..., None])
    images.rows = [row for row in images.rows if row[3] not in ("north1", "north2", "north3")]
    images.write()
    by_hand = ("data.spacing_mm=1", "data.normalise=percentile", "data.slice_axis=2")
    assert command(*images.options(tmp_path / "run", *by_hand)).code == 0
    cards = json.loads((tmp_path / "run" / "checkpoints" / "sites.json").read_text())
    (north,) = (card for card in cards if card["name"] == "north")
    assert {split: counts["labelled"] for split, counts in north["splits"].items()} == {
        "train": 1,
        "val": 0,
        "test": 0,
    }
    assert "too short to be cut" in " ".join(north["notes"])
    assert ",north," not in (tmp_path / "run" / "cases.csv").read_text()


@pytest.mark.parametrize("name", ["vendor", "scanner", "session", "spacing_mm"])
def test_a_column_that_is_named_must_be_there(
    command: Command, images: ImageSet, tmp_path: Path, name: str
) -> None:
    named = f"data.columns.{name}=vendro"
    outcome = command(*images.options(tmp_path / "run", named))
    assert_sentence(outcome, "vendro", f"data.columns.{name}")


def test_a_run_without_validation_says_what_is_not_done(
    command: Command, images: ImageSet, tmp_path: Path
) -> None:
    """Three subjects a site: two train, one is tested, and no message asks for validation."""
    images.rows = [row for row in images.rows if not row[3].endswith("3")]
    images.write()
    split = "data.split={train: 0.7, val: 0, test: 0.3}"
    outcome = command(*images.options(tmp_path / "run", split))
    assert outcome.code == 0, outcome.err
    said = "north, south: data.split leaves nothing for validation"
    assert said in outcome.out
    assert said.replace(": data", "</b>: data") in (tmp_path / "run" / "report.html").read_text()
    assert "no site told what it reaches" in (tmp_path / "run" / "report.html").read_text()
    (line,) = map(json.loads, (tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
    assert "val_dice" not in line["sites"]["north"]
    asked = (tmp_path / "run" / "egress.jsonl").read_text()
    assert "validation metrics" not in asked
    assert ",val," not in (tmp_path / "run" / "cases.csv").read_text()
    check = command("sites", "check", *NIFTI[:2], f"data.manifest={images.table}", split)
    assert "falls to val" not in check.out


def test_a_federation_whose_labels_are_all_hidden_cannot_train(
    command: Command, images: ImageSet, tmp_path: Path
) -> None:
    outcome = command(*images.options(tmp_path / "run", "data.unlabelled_sites=[north, south]"))
    assert_sentence(outcome, "no site can train")


# The output folder.


@pytest.fixture
def earlier(reference: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a finished run, which must come out of the test as it went in."""
    run = tmp_path / "earlier"
    shutil.copytree(reference, run)
    before = tree(run)
    yield run
    assert tree(run) == before


def test_a_folder_that_holds_a_run_is_left_alone(
    command: Command, tiny: tuple[str, ...], earlier: Path
) -> None:
    outcome = command("simulate", *tiny, f"out={earlier}")
    assert_sentence(outcome, str(earlier), "resume=true", "out=DIR")


def test_resuming_with_another_config_names_the_key(
    command: Command, tiny: tuple[str, ...], earlier: Path
) -> None:
    outcome = command("simulate", *tiny, f"out={earlier}", "resume=true", "method.lr=0.5")
    assert_sentence(outcome, "another config", "method.lr")
    assert "seed" not in outcome.err


@pytest.mark.parametrize(
    "held", ["notes.txt", "checkpoints/model.bin", "config.yaml", "evaluation"]
)
def test_a_folder_that_holds_anything_else_is_left_alone(
    command: Command, tiny: tuple[str, ...], reference: Path, tmp_path: Path, held: str
) -> None:
    out = tmp_path / "mine"
    if held == "evaluation":  # What `fedshift evaluate` writes has a config.yaml of its own.
        out.mkdir()
        for name in ("config.yaml", "cases.csv", "cross_site.csv"):
            shutil.copy(reference / name, out / name)
    else:
        (out / held).parent.mkdir(parents=True)
        (out / held).write_text("mine: true\n")
    before = tree(out)
    for resume in ("false", "true"):
        outcome = command("simulate", *tiny, f"out={out}", f"resume={resume}")
        assert_sentence(outcome, str(out))
    assert tree(out) == before


def test_an_output_that_is_a_file_is_named(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_sentence(command("simulate", *tiny, f"out={out}"), str(out), "out=DIR")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("arguments", [("evaluate",), ("report",)])
@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_folder_without_a_run_cannot_be_evaluated_or_reported(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], folder: str
) -> None:
    (tmp_path / "empty").mkdir()
    outcome = command(*arguments, str(tmp_path / folder))
    assert_sentence(outcome, str(tmp_path / folder))
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("out", "words"),
    [("5", "not 5"), ("['a']", "not ['a']"), ("true", "not True"), ("{a: 1}", "not {'a': 1}")],
)
@pytest.mark.parametrize("verb", ["simulate", "compare"])
def test_an_output_that_is_no_name_is_not_taken_for_one(
    command: Command,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    out: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_sentence(command(verb, *tiny, f"out={out}"), "out must be the name of a folder", words)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_link_to_nowhere_is_named(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "link", tmp_path / "link" / "below"):
        outcome = command("simulate", *tiny, f"out={out}")
        assert_sentence(outcome, str(out), "is a link to", "nowhere", "out=DIR")


# Damaged run files.


def bomb() -> str:
    """A short YAML file that is a billion items long."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.fixture
def half_done(reference: Path, cut_short: Callable[..., Path], tmp_path: Path) -> Path:
    return cut_short(reference, tmp_path / "run")


CONFIGS = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: text.index("strategy:")],
    "cut in a group": lambda text: text[: text.index("engine:") + 8],
    "a list": lambda text: "[1, 2]",
    "aliases": lambda text: bomb(),
    "binary": lambda text: "\0\1\2",
    "nested": lambda text: "[" * 100_000,
    "huge": lambda text: text + "#" * 2**21,
    "other types": lambda text: "\n".join(f"{key}: 5" for key in ("data", "engine", "federation")),
    "rounds a list": lambda text: re.sub("(?m)^rounds: .*$", "rounds: []", text),
    "splits renamed": lambda text: text.replace("  split:", "  spilt:"),
}
NOT_OF_A_PAGE = ("cut short", "cut in a group", "other types", "rounds a list", "splits renamed")
"""Faults in what a page has no need of."""


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_damaged_config_is_one_sentence_and_quick(
    command: Command, tiny: tuple[str, ...], half_done: Path, fault: str
) -> None:
    path = half_done / "config.yaml"
    path.write_text(CONFIGS[fault](path.read_text()))
    begin = time.monotonic()
    assert_sentence(command("simulate", *tiny, f"out={half_done}", "resume=true"), "config.yaml")
    assert_sentence(command("evaluate", str(half_done)), "config.yaml")
    if fault not in NOT_OF_A_PAGE:
        assert_sentence(command("report", str(half_done)), "config.yaml")
    assert time.monotonic() - begin < 30


def test_a_config_reaches_nothing_outside_itself(
    half_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedshift.server.report.run import read_run

    monkeypatch.setenv("SECRET", "hidden")
    path = half_done / "config.yaml"
    path.write_text(path.read_text() + "note: ${oc.env:SECRET}\n")
    assert read_run(half_done).config["note"] == "${oc.env:SECRET}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoints/sites.json", "[{"),
        ("checkpoints/sites.json", "[]"),
        ("checkpoints/sites.json", '[{"name": 5}]'),
        ("checkpoints/sites.json", '{"name": "a"}'),
        ("checkpoints/method.json", '{"tensors"'),
        ("checkpoints/method.json", '{"tensors": 5}'),
        ("checkpoints/method.json", "5"),
        ("rounds.jsonl", ""),
        ("rounds.jsonl", "5\n"),
        ("rounds.jsonl", '{"round": "one"}\n'),
        ("rounds.jsonl", '{"round": 1}\n'),
        ("egress.jsonl", '{"site": "a"}\n'),
        ("checkpoints/round_0001.json", "{"),
        ("checkpoints/round_0001.safetensors", "{"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_sentence(
    command: Command, tiny: tuple[str, ...], half_done: Path, name: str, text: str
) -> None:
    (half_done / name).write_text(text)
    outcome = command("simulate", *tiny, f"out={half_done}", "resume=true")
    assert_sentence(outcome, Path(name).name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoints/evaluation.json", "{"),
        ("checkpoints/evaluation.json", "[1]"),
        ("checkpoints/evaluation.json", '{"problems": [1]}'),
        ("checkpoints/sites.json", '[{"name": "vendor_a"}]'),
        ("rounds.jsonl", '{"round": 1'),
        ("egress.jsonl", "[]\n"),
    ],
)
def test_a_report_of_a_damaged_file_is_one_sentence(
    command: Command, reference: Path, tmp_path: Path, name: str, text: str
) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    (run / name).write_text(text)
    assert_sentence(command("report", str(run)), Path(name).name)


@pytest.mark.parametrize(
    "name",
    [
        ".cases.csv.1.tmp",
        "rounds.jsonl",
        "config.yaml",
        "run.json",
        "cases.csv",
        "checkpoints/round_0001.safetensors",
        "checkpoints/round_0002.safetensors",
        "checkpoints/round_0002.json",
        "checkpoints/sites.json",
        "checkpoints/method.json",
        "checkpoints/evaluation.json",
    ],
)
def test_a_folder_in_the_place_of_a_file_is_one_sentence(
    command: Command, tiny: tuple[str, ...], half_done: Path, name: str
) -> None:
    (half_done / name).unlink(missing_ok=True)
    (half_done / name).mkdir()
    outcome = command("simulate", *tiny, f"out={half_done}", "resume=true")
    assert_sentence(outcome, Path(name).name)


# A full disk.


def test_a_disk_that_fills_up_at_a_checkpoint_costs_no_finished_round(
    command: Command,
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    reference: Path,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    write = storage.write_tensors

    def until_full(path: Path, tensors: Any) -> None:
        if path.name == "round_0002.safetensors" and path.parent.name == "checkpoints":
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                write(path, tensors)
        else:
            write(path, tensors)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fedshift.server.checkpoint.write_tensors", until_full)
        outcome = command("simulate", *tiny, "strategy=fedavg", f"out={out}")
    assert_sentence(outcome, "round_0002.safetensors is full", "same command again")
    done = out / "checkpoints" / "round_0001.safetensors"
    assert done.read_bytes() == (reference / "checkpoints" / done.name).read_bytes()
    simulate(out, "strategy=fedavg", "resume=true")
    expected, found = contents(reference), contents(out)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if name != "figures/curves.png":
            assert found[name] == content, name


def test_a_disk_that_fills_up_anywhere_else_is_one_sentence_too(
    command: Command, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedshift.client.simulation.LocalSites.egress", full)
    outcome = command("simulate", *tiny, f"out={tmp_path / 'run'}")
    assert_sentence(outcome, "No space left on device")
