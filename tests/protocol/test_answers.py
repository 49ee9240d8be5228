"""What a coordinator takes of a site's answer, kind by kind (:mod:`fedshift.protocol.answers`)."""

from __future__ import annotations

import numpy as np
import pytest
from kit.cases import segmentation

from fedshift.protocol import statistics as names
from fedshift.protocol.answers import (
    LARGEST_NUMBER,
    LARGEST_WEIGHT,
    Unfit,
    check_tensor,
    extent,
    read_method,
    read_name,
    read_summary,
)
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.messages import TensorInfo, answer, pack_arrays

ODD = ["", ".", "..", "a/b", "a\\b", "a\0b", "a::b", "é" * 101, "\ud800"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_no_folder_can_have_is_nobodys(name: str) -> None:
    with pytest.raises(Unfit, match=r"^sent a name that (is no|is longer|cannot be read)"):
        read_name(answer(name))


COUNTS = {"subjects": 2, "cases": 3, "slices": 9, "labelled": 6}
NONE = dict.fromkeys(COUNTS, 0)
CARD = SiteCard(
    name="a",
    role="train",
    vendors=("v",),
    parts=("disc",),
    labelled=("disc",),
    teaches={"disc": 6},
    complete=True,
    splits={"train": COUNTS, "val": NONE, "test": NONE},
    spacing_mm=((1.0, 1.0, 1.0),),
    size=(8, 8),
    notes=(),
)


def test_a_summary_is_of_no_more_images_than_the_card_says() -> None:
    for count in (9.0, 10.0):
        sent = {
            names.FEATURE_COUNT: np.array([count]),
            names.FEATURE_MEAN: np.zeros(2),
            names.FEATURE_COVARIANCE: np.eye(2),
        }
        if count == 9:
            assert read_summary(answer("a", statistics=sent), CARD).keys() == sent.keys()
        else:
            with pytest.raises(Unfit, match=r"^sent feature_count of 10 images and has 9$"):
                read_summary(answer("a", statistics=sent), CARD)


def test_a_counter_that_no_training_reaches_is_refused() -> None:
    info = TensorInfo("net", "norm_buffer", "averaged", (), "int64")
    check_tensor("net/counter", np.array(1000), info)
    with pytest.raises(Unfit, match="with numbers beyond 1e"):
        check_tensor("net/counter", np.array(2**63 - 1), info)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "=HYPERLINK(1)", "a b", "\x1b[2J", ""])
def test_a_measure_is_called_by_a_name_and_not_by_a_formula(name: str) -> None:
    card = segmentation("disc").card("segmentation").to_json()
    card["measures"][0]["name"] = name
    told = {
        "tensors": {},
        "participation": "labelled",
        "stages": [],
        "task": card,
        "offers": [],
        "complete_labels": False,
    }
    with pytest.raises(Unfit, match=r"^sent a method's card that cannot be read: a measure's name"):
        read_method(answer("a", arrays=pack_arrays({}), details=told), "segmentation", ["disc"])
    card["measures"][0]["name"] = "dice"
    read_method(answer("a", arrays=pack_arrays({}), details=told), "segmentation", ["disc"])


@pytest.mark.parametrize("most", [LARGEST_NUMBER, LARGEST_WEIGHT])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_found_in_every_precision(
    number: float, kind: str, most: float
) -> None:
    fine = np.ones(5, kind)
    assert extent(fine, most) is None
    fine[3] = number
    assert extent(fine, most) == "with numbers that are not finite"
