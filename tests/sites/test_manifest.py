"""From settings and a table to a federation and open sites; one sentence for each bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kit.cases import mask, native_mask
from kit.repository import ROOT

from fedshift import UserError
from fedshift.sites import (
    DataSettings,
    fingerprint,
    load_federation,
    open_site,
    opening,
    pooled_site,
    prepare,
    readers,
)
from fedshift.sites.types import Federation, SiteData

MANIFEST = {"name": "m", "kind": "manifest"}
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
ROWS = [(site, f"{site}{k}") for site in ("A", "B") for k in range(4)]


def volume(seed: int, slices: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """An image (20, 24, slices) with a bright box, and its label 1."""
    image = np.random.default_rng(seed).normal(10, 1, (20, 24, slices)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[5:12, 8 : 14 + seed % 3] = 1
    return image + 10 * label, label


def save(path: Path, array: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


class Maker:
    """Writes volumes and their table, and opens them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "table.tsv"
        for k, (_, subject) in enumerate(ROWS):
            image, label = volume(k)
            save(folder / f"{subject}.nii.gz", image)
            save(folder / f"{subject}_mask.nii.gz", label)
        self.write()

    def write(self, extra: Mapping[str, str] | None = None, **replaced: str) -> None:
        """Write the table; ``extra`` adds columns, ``replaced`` changes header names."""
        extra = extra or {}
        names = ["path", "label_path", "site", "subject", *extra]
        lines = ["\t".join(replaced.get(name, name) for name in names)]
        for site, subject in ROWS:
            cells = [f"{subject}.nii.gz", f"{subject}_mask.nii.gz", site, subject]
            lines.append("\t".join([*cells, *extra.values()]))
        self.table.write_text("\n".join(lines) + "\n")

    def settings(self, **config: Any) -> DataSettings:
        given = {
            "manifest": str(self.table),
            "size": 32,
            "cache": str(self.folder / "cache"),
            "labels": {"box": 1},
            **config,
        }
        return DataSettings.from_config(given)

    def load(self, **config: Any) -> tuple[Federation, DataSettings]:
        data = self.settings(**config)
        return load_federation(MANIFEST, data, 0), data

    def open(self, name: str = "A", **config: Any) -> SiteData:
        federation, data = self.load(**config)
        return open_site(federation.site(name), federation.parts, data, 0)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def test_a_table_becomes_sites_with_subject_splits_and_mapped_arrays(maker: Maker) -> None:
    federation, data = maker.load()
    assert [site.name for site in federation.sites] == ["A", "B"]
    site = open_site(federation.sites[0], federation.parts, data, 0)
    assert {split: len(cases) for split, cases in site.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    case = site.splits["test"][0]
    for array in (case.image, mask(case), native_mask(case)):
        assert isinstance(array, np.memmap) and not array.flags.writeable
    image, label = volume([subject for _, subject in ROWS].index(case.subject))
    # The layout by hand: slices first, front at the top, right on the left.
    assert np.array_equal(native_mask(case), label.transpose(2, 1, 0)[:, ::-1, ::-1])
    low, high = np.percentile(image, (1, 99))
    expected = ((image - low) / (high - low)).transpose(2, 1, 0)[:, ::-1, ::-1]
    assert np.allclose(case.image[:, 0, 4:28, 6:26], expected, atol=1e-6)
    assert case.spacing_mm == case.native_spacing_mm == (4.0, 1.0, 1.0)
    one_hot = (mask(case)[:, None] == np.arange(2)[None, :, None, None]).astype(np.float32)
    assert np.array_equal(case.grid.to_native(one_hot), native_mask(case))


def test_the_fingerprint_counts_what_was_written(maker: Maker) -> None:
    print_ = fingerprint(maker.open("B"))
    assert print_["splits"]["train"] == {"subjects": 2, "cases": 2, "slices": 10, "labelled": 10}
    assert print_["spacing_mm"]["median"] == [4.0, 1.0, 1.0]
    counts = [np.count_nonzero(volume(k)[1]) for k in range(4, 8)]
    assert print_["parts"]["box"][0] == pytest.approx(np.mean(counts) * 4 / 1000)
    assert print_["vendors"] == {"unknown": 4}


def test_columns_labels_and_values_can_be_renamed(maker: Maker) -> None:
    for subject in ("A0", "A1", "A2", "A3"):
        label = np.asarray(nibabel.load(maker.folder / f"{subject}_mask.nii.gz").dataobj)
        both = label * 7
        both[0, 0] = 3
        save(maker.folder / f"{subject}_mask.nii.gz", both.astype(np.int16))
    maker.write(site="hospital")
    config = {"columns": {"site": "hospital"}, "labels": {"box": [7, 1], "background": 3}}
    site = maker.open("A", **config)
    case = site.splits["train"][0]
    assert set(np.unique(mask(case))) == {0, 1}
    assert maker.open("A", site_column="hospital", labels=config["labels"]).name == "A"


def test_structures_come_from_the_table_or_else_from_the_files(maker: Maker) -> None:
    assert maker.load(labels=None)[0].parts == ("label 1",)
    maker.write({"label_values": "0=bg,1=big box(drawn by hand)"})
    federation, data = maker.load(labels=None)
    assert federation.parts == ("big box",)
    site = open_site(federation.sites[0], federation.parts, data, 0)
    assert "mask" in site.splits["train"][0].labels


def test_sites_are_cut_by_a_pattern_and_the_rest_is_counted(maker: Maker) -> None:
    federation, data = maker.load(site_pattern=r"^(A)\d")
    assert [site.name for site in federation.sites] == ["A"]
    site = open_site(federation.sites[0], ("box",), data, 0)
    assert any("4 rows of the manifest match no site" in note for note in site.notes)


def test_roles_and_hidden_labels(maker: Maker) -> None:
    federation, data = maker.load(unseen_sites=["B"], unlabelled_sites=["A"])
    assert federation.site("B").role == "unseen"
    unseen = open_site(federation.site("B"), ("box",), data, 0)
    assert [len(unseen.splits[split]) for split in ("train", "val", "test")] == [0, 0, 4]
    hidden = open_site(federation.site("A"), ("box",), data, 0)
    assert hidden.counts("train")["labelled"] == hidden.counts("val")["labelled"] == 0
    assert not any(case.labels for case in hidden.splits["train"])
    assert hidden.counts("test")["labelled"] == 5


def test_slices_without_a_label_are_unlabelled_and_an_empty_mask_too(maker: Maker) -> None:
    _, label = volume(0)
    label[..., 3:] = 0
    save(maker.folder / "A0_mask.nii.gz", label)
    save(maker.folder / "A1_mask.nii.gz", np.zeros_like(label))
    site = maker.open("A")
    cases = {case.subject: case for split in site.splits.values() for case in split}
    assert cases["A0"].labelled.tolist() == [True] * 3 + [False] * 2
    assert not cases["A1"].labels and not cases["A1"].labelled.any()
    assert cases["A1"] in site.splits["train"]
    assert any("1 image has an empty mask" in note for note in site.notes)
    assert any("2 slices of labelled volumes" in note for note in site.notes)


@pytest.mark.parametrize("fault", ["missing", "corrupt", "nan", "shape"])
def test_one_bad_image_is_left_out_and_named(maker: Maker, fault: str) -> None:
    path = maker.folder / "A2.nii.gz"
    if fault == "missing":
        path.unlink()
    elif fault == "corrupt":
        path.write_bytes(path.read_bytes()[:100])
    elif fault == "nan":
        save(path, np.full((20, 24, 5), np.nan, np.float32))
    else:
        save(path, np.ones((20, 24, 6), np.float32))
    site = maker.open("A")
    assert sum(map(len, site.splits.values())) == 3
    assert [note for note in site.notes if note.startswith("left out: 1 of 4 images (row 4: ")]


def test_a_site_with_nothing_left_is_an_error(maker: Maker) -> None:
    for k in range(4):
        (maker.folder / f"A{k}.nii.gz").unlink()
    with pytest.raises(UserError, match="site A has no usable image out of 4"):
        maker.open("A")


def test_a_value_outside_the_map_stops_with_file_value_and_key(maker: Maker) -> None:
    label = volume(0)[1] * 9
    save(maker.folder / "A0_mask.nii.gz", label)
    with pytest.raises(UserError, match=r"A0_mask\.nii\.gz holds the value 9.*data\.labels"):
        maker.open("A")


def test_a_name_that_is_no_structure_is_an_error(maker: Maker) -> None:
    maker.write({"label_values": "1=box"})
    federation, data = maker.load(labels=None)
    with pytest.raises(UserError, match="'box' is no structure"):
        open_site(federation.sites[0], ("rim",), data, 0)


def test_bad_tables_are_named_in_one_sentence(maker: Maker) -> None:
    with pytest.raises(UserError, match="does not exist"):
        maker.load(manifest=str(maker.folder / "no.tsv"))
    with pytest.raises(UserError, match=r"data\.manifest is not set"):
        maker.load(manifest=None)
    maker.write(subject="subjects")
    with pytest.raises(UserError, match=r"no column 'subject'.*to subjects"):
        maker.load()
    maker.write()
    text = maker.table.read_text()
    maker.table.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(UserError, match=r"line 10: A0\.nii\.gz is already on line 2"):
        maker.load()
    maker.table.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="gives no site"):
        maker.load()
    maker.table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        maker.load()
    maker.write()
    with pytest.raises(UserError, match="matches none of its 8 paths"):
        maker.load(site_pattern="(zzz)")
    with pytest.raises(UserError, match=r"data\.sites: no site 'C'"):
        maker.load(sites=["C"])
    with pytest.raises(UserError, match="no site trains"):
        maker.load(unseen_sites=["A", "B"])
    with pytest.raises(UserError, match=r"federation\.kind"):
        load_federation({"kind": "cloud"}, maker.settings(), 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sise", 64),
        ("size", 4),
        ("size", "64"),
        ("size", True),
        ("spacing_mm", 0),
        ("spacing_mm", float("nan")),
        ("default_spacing_mm", -1),
        ("slice_axis", 3),
        ("normalise", "minmax"),
        ("split", {"train": 1.0, "val": 0.0, "test": 0.0}),
        ("split", {"train": 0.6, "val": 0.2, "test": 0.3}),
        ("split", {"train": 0.6, "val": 0.4}),
        ("split_gap", -1),
        ("labels", {}),
        ("labels", {"a": 1, "b": 1}),
        ("labels", {"a": 0}),
        ("labels", {"a": 1.5}),
        ("columns", {"image": "path"}),
        ("site_pattern", "("),
        ("site_pattern", "HF-I"),
        ("sites", 3),
        ("manifest", 3),
    ],
)
def test_a_bad_setting_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}"):
        DataSettings.from_config({key: value})


def test_the_config_file_holds_exactly_the_settings_and_their_defaults() -> None:
    from omegaconf import OmegaConf

    path = ROOT / "configs" / "data" / "default.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    assert set(config) == set(DataSettings.__dataclass_fields__) - {"auto", "form"}
    columns = config.pop("columns")
    planned = {"spacing_mm", "size", "slice_axis", "normalise"}
    assert DataSettings.from_config(config) == DataSettings(auto=frozenset(planned))
    assert all(name == column for name, column in columns.items())


def test_pooling_joins_training_and_validation_cases(maker: Maker) -> None:
    federation, data = maker.load()
    sites = [open_site(site, ("box",), data, 0) for site in federation.sites]
    pooled = pooled_site(sites)
    assert {split: len(cases) for split, cases in pooled.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 0,
    }
    other = open_site(federation.sites[0], ("box",), maker.settings(size=40), 0)
    with pytest.raises(UserError, match="cannot be pooled"):
        pooled_site([sites[1], other])


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    original = readers.read

    def counted(path: Path) -> readers.Contents:
        reads.append(path.name)
        return original(path)

    monkeypatch.setattr(readers, "read", counted)
    return reads


def test_each_file_is_read_once_and_never_again(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    first = maker.open("A")
    assert len(reads) == len(set(reads)) == 8
    again = maker.open("A")
    assert len(reads) == 8
    assert np.array_equal(first.splits["test"][0].image, again.splits["test"][0].image)


def test_a_changed_image_or_setting_is_read_again(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {c.subject: c for cases in maker.open("A").splits.values() for c in cases}["A0"]
    image, _ = volume(0)
    save(maker.folder / "A0.nii.gz", image[::-1])
    after = {c.subject: c for cases in maker.open("A").splits.values() for c in cases}["A0"]
    assert not np.array_equal(before.image, after.image)
    reads = count_reads(monkeypatch)
    maker.open("A", normalise="zscore")
    assert len(reads) == 8


def test_equal_bytes_under_new_times_find_the_same_entry(maker: Maker) -> None:
    maker.open("A")
    entries = sorted((maker.folder / "cache").glob("??/*/meta.json"))
    path = maker.folder / "A0.nii.gz"
    path.write_bytes(path.read_bytes())
    maker.open("A")
    assert sorted((maker.folder / "cache").glob("??/*/meta.json")) == entries


@pytest.mark.parametrize("damage", ["truncate", "meta", "missing", "stamp", "all"])
def test_a_damaged_cache_is_rebuilt(maker: Maker, damage: str) -> None:
    expected = np.array(maker.open("A").splits["test"][0].image)
    cache = maker.folder / "cache"
    (entry,) = (meta.parent for meta in cache.glob("??/*/meta.json"))
    if damage == "truncate":
        content = (entry / "image.npy").read_bytes()
        (entry / "image.npy").unlink()
        (entry / "image.npy").write_bytes(content[: len(content) // 2])
    elif damage == "meta":
        (entry / "meta.json").write_text("{")
    elif damage == "missing":
        (entry / "native.npy").unlink()
    elif damage == "stamp":
        for stamp in (cache / "stamps").glob("*/*"):
            stamp.write_text("nonsense")
    else:
        shutil.rmtree(cache)
    assert np.array_equal(maker.open("A").splits["test"][0].image, expected)
    assert not list(cache.glob("tmp-*"))


def test_a_failed_build_leaves_nothing_behind(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare_file", fail)
    with pytest.raises(KeyboardInterrupt):
        maker.open("A")
    assert list((maker.folder / "cache").iterdir()) == []


def test_an_unusable_cache_folder_is_named(maker: Maker) -> None:
    (maker.folder / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache"):
        maker.open("A", cache=str(maker.folder / "file" / "cache"))


def test_processes_at_once_share_one_entry(maker: Maker) -> None:
    code = f"""
from fedshift.sites import DataSettings, load_federation, open_site
data = DataSettings.from_config(dict(manifest={str(maker.table)!r}, size=32,
    cache={str(maker.folder / "cache")!r}, labels=dict(box=1)))
federation = load_federation(dict(kind="manifest"), data, 0)
for _ in range(3):
    site = open_site(federation.site("A"), ("box",), data, 0)
print(float(site.splits["test"][0].image.sum()))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert len(list((maker.folder / "cache").glob("??/*/meta.json"))) == 1


def test_importing_sites_loads_no_image_library() -> None:
    code = (
        "import sys, fedshift.sites; "
        "print(sorted({'nibabel', 'pydicom', 'PIL', 'torch', 'scipy'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


PHANTOM = {
    "name": "p",
    "kind": "phantom",
    "anatomy": "cardiac",
    "shift": 1.0,
    "sites": {"vendor_a": ["vendor_a"], "two": ["vendor_a", "vendor_b"], "vendor_d": ["vendor_d"]},
    "unseen": ["vendor_d"],
    "sites_per_vendor": 2,
    "subjects": 5,
    "slices": 2,
    "size": 64,
}


def test_phantom_sites_have_their_own_subjects_and_vendors(tmp_path: Path) -> None:
    data = DataSettings.from_config({"cache": str(tmp_path), "size": 128, "spacing_mm": 0.5})
    federation = load_federation(PHANTOM, data, 3)
    names = ["two_001", "two_002", "vendor_a_001", "vendor_a_002", "vendor_d"]
    assert [site.name for site in federation.sites] == names
    assert [site.role for site in federation.sites] == ["train"] * 4 + ["unseen"]
    assert federation.sites[0].vendors == ("vendor_a", "vendor_b")
    subjects = [image.subject for site in federation.sites for image in site.images]
    assert len(set(subjects)) == 25
    site = open_site(federation.sites[2], federation.parts, data, 3)
    assert site.size == (64, 64), "the phantom's own grid is the network's"
    assert site.counts("train")["labelled"] == 6
    case = site.splits["test"][0]
    from fedshift.sites import phantoms

    image, label, spacing = phantoms.draw(
        "cardiac", vendor="vendor_a", subject=case.subject, seed=3, shift=1.0, size=64, slices=2
    )
    assert np.array_equal(mask(case), label) and case.spacing_mm == pytest.approx(spacing)
    assert np.array_equal(native_mask(case), label)
    low, high = np.percentile(image, (1, 99))
    assert np.allclose(case.image[:, 0], (image - low) / (high - low), atol=1e-6)
    assert len(list(tmp_path.glob("??/*/meta.json"))) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shift", 2),
        ("subjects", 0),
        ("sites", {}),
        ("sites", {"s": ["vendor_z"]}),
        ("unseen", ["nobody"]),
        ("subject", 3),
    ],
)
def test_bad_phantom_settings_name_their_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"federation\.{key}"):
        load_federation({**PHANTOM, "unseen": [], key: value}, DataSettings(), 0)


def test_a_thousand_phantom_sites_are_listed_quickly(timer: Callable[[], float]) -> None:
    many = {**PHANTOM, "sites": {"vendor_a": ["vendor_a"]}, "unseen": [], "sites_per_vendor": 1000}
    start = timer()
    assert len(load_federation(many, DataSettings(), 0).sites) == 1000
    assert timer() - start < 2


@pytest.fixture
def timer() -> Callable[[], float]:
    import time

    return time.process_time


def test_value_maps_follow_each_files_own_label_values(maker: Maker) -> None:
    lines = maker.table.read_text().splitlines()
    rows = [lines[0] + "\tlabel_values"]
    rows += [line + ("\t1=box,2=rim" if "\tA\t" in line else "\t2=box,1=rim") for line in lines[1:]]
    maker.table.write_text("\n".join(rows) + "\n")
    federation, data = maker.load(labels=None)
    assert federation.parts == ("box", "rim")
    found = [opening.legends(site, federation.parts, data)[0] for site in federation.sites]
    maps = [legend.classes({}) for legend in found if legend is not None]
    assert maps == [{0: 0, 1: 1, 2: 2}, {0: 0, 2: 1, 1: 2}]


@pytest.mark.parametrize("name", ["all", "..", "a/b", "a\\b", "a::b"])
def test_a_site_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    federation = {
        "kind": "phantom",
        "anatomy": "cardiac",
        "shift": 1.0,
        "sites": {name: ["vendor_a"], "other": ["vendor_b"]},
        "subjects": 3,
        "slices": 1,
        "size": 32,
    }
    with pytest.raises(UserError, match="rename the site"):
        load_federation(federation, DataSettings(), 0)
