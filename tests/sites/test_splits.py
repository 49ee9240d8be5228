"""Subject-level splits: leaks, small sites and blocks of slices."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from fedshift.sites.splits import Item, Part, split_site

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def run(
    items: list[Item], role: str = "train", gap: int = 1, seed: int = 0, site: str = "s"
) -> tuple[list[Part], list[str]]:
    return split_site(items, role=role, fractions=FRACTIONS, gap=gap, seed=seed, site=site)


def volumes(subjects: str, slices: int = 3, labelled: bool = True) -> list[Item]:
    return [Item(name, np.full(slices, labelled)) for name in subjects]


@pytest.mark.parametrize("count", [3, 4, 5, 10, 45])
def test_each_split_has_a_subject_and_none_is_in_two(count: int) -> None:
    items = [Item(f"p{k % count}", np.ones(2, bool)) for k in range(2 * count)]
    parts, notes = run(items)
    of: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        of[part.split].add(items[part.index].subject)
    assert len(parts) == len(items) and not notes
    assert sum(map(len, of.values())) == count == len(set.union(*of.values()))
    assert len(of["val"]) == max(1, round(0.2 * count)) == len(of["test"])


def test_the_split_is_of_seed_and_site_only() -> None:
    items = volumes("abcdefghij")
    assert run(items) == run(items)
    assert len({str(run(items, seed=seed)[0]) for seed in range(5)}) > 1
    assert run(items, site="s")[0] != run(items, site="t")[0]


def test_a_single_subject_is_cut_into_blocks_with_a_gap() -> None:
    parts, notes = run([Item("p", np.ones(20, bool))], gap=2)
    # 16 usable slices: val 3, test 3, train 10.
    assert [(p.split, p.start, p.stop) for p in parts] == [
        ("train", 0, 10),
        ("val", 12, 15),
        ("test", 17, 20),
    ]
    assert "single labelled subject" in notes[0]
    assert notes[1].startswith("4 slices")


def test_blocks_are_shares_of_the_labelled_slices() -> None:
    labelled = np.zeros(30, bool)
    labelled[5:15] = True
    parts, _ = run([Item("p", labelled)], gap=0)
    assert [int(labelled[p.start : p.stop].sum()) for p in parts] == [6, 2, 2]
    assert (parts[0].start, parts[-1].stop) == (0, 30)


def test_a_single_subject_of_single_images_is_cut_over_the_sequence() -> None:
    parts, _ = run([Item("p", np.ones(1, bool)) for _ in range(12)], gap=1)
    assert [p.index for p in parts if p.split == "train"] == [0, 1, 2, 3, 4, 5]
    assert [p.index for p in parts if p.split == "val"] == [7, 8]
    assert [p.index for p in parts if p.split == "test"] == [10, 11]


def test_a_volume_too_short_to_cut_trains_whole_and_says_so() -> None:
    parts, notes = run([Item("p", np.ones(4, bool))], gap=1)
    assert [(p.split, p.start, p.stop) for p in parts] == [("train", 0, 4)]
    assert any("train whole" in note for note in notes)


def test_two_subjects_keep_the_test_subject_apart() -> None:
    parts, notes = run(volumes("ab", slices=10))
    tested = {p.index for p in parts if p.split == "test"}
    assert len(tested) == 1
    assert {p.split for p in parts if p.index not in tested} == {"train", "val"}
    assert "two labelled subjects" in notes[0]


def test_subjects_without_labels_only_train() -> None:
    items = volumes("abcde") + volumes("xy", labelled=False)
    parts, notes = run(items)
    assert {p.split for p in parts if p.index >= 5} == {"train"}
    assert "2 images" in notes[0]
    nothing, notes = run(volumes("xyz", labelled=False))
    assert {p.split for p in nothing} == {"train"} and "no labels" in notes[0]


def test_an_unseen_site_only_tests() -> None:
    parts, _ = run(volumes("abc"), role="unseen")
    assert [p.split for p in parts] == ["test"] * 3


NO_VAL = {"train": 0.75, "val": 0.0, "test": 0.25}


def test_without_validation_subjects_are_dealt_to_train_and_test_alone() -> None:
    for subjects, tested in ((2, 1), (3, 1), (8, 2), (20, 5)):
        items = volumes("abcdefghijklmnopqrst"[:subjects])
        parts, notes = split_site(items, role="train", fractions=NO_VAL, gap=1, seed=0, site="s")
        assert {p.split for p in parts} == {"train", "test"}
        assert sum(p.split == "test" for p in parts) == tested
        assert all((p.start, p.stop) == (0, 3) for p in parts)
        assert notes == ["data.split leaves nothing for validation: nothing is validated here"]


def test_without_validation_a_single_subject_is_cut_once() -> None:
    items = [Item("p", np.ones(21, bool))]
    parts, notes = split_site(items, role="train", fractions=NO_VAL, gap=1, seed=0, site="s")
    # 20 usable slices: test 5, train 15, one dropped between.
    assert [(p.split, p.start, p.stop) for p in parts] == [("train", 0, 15), ("test", 16, 21)]
    assert any("train and test are blocks" in note for note in notes)
