"""Leaving every vendor out in turn: no model ever saw the vendor that it is scored on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kit.measured import SEGMENTATION

from fedshift import UserError
from fedshift.runs.config import load
from fedshift.runs.evaluate import evaluate
from fedshift.runs.federation import open_federation
from fedshift.runs.simulate import folds, run
from fedshift.server import report
from fedshift.server.report.run import read_run
from fedshift.server.tables.files import read_cases, read_cross_site

SITES = "federation.sites={a1: [vendor_a], a2: [vendor_a], b: [vendor_b], m: [vendor_a, vendor_c]}"


@pytest.fixture(scope="module")
def in_turn(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over four sites, one of which has scanners of two vendors."""
    config = load(
        [
            *(option for option in tiny if not option.startswith(("rounds", "local_steps"))),
            "protocol=leave_one_vendor_out",
            SITES,
            "federation.unseen=[]",
            "rounds=1",
            "local_steps=1",
            "baselines=[local]",
        ]
    )
    out = tmp_path_factory.mktemp("folds") / "run"
    run(out, config, drawn=False)  # the folds' pages would take a while
    report.build(out)
    return out


def test_a_fold_leaves_out_every_site_with_images_of_its_vendor(in_turn: Path) -> None:
    trained = {}
    for fold in sorted((in_turn / "folds").iterdir()):
        cards = json.loads((fold / "checkpoints" / "sites.json").read_text())
        trained[fold.name] = {card["name"] for card in cards if card["role"] == "train"}
    assert trained == {
        "vendor_a": {"b"},
        "vendor_b": {"a1", "a2", "m"},
        "vendor_c": {"a1", "a2", "b"},
    }


def test_each_image_is_scored_by_the_fold_without_its_vendor(in_turn: Path) -> None:
    cases = read_cases(in_turn / "cases.csv", SEGMENTATION)
    assert {row["site"] for row in cases} == {"a1", "a2", "b", "m"}
    for vendor in ("vendor_a", "vendor_b", "vendor_c"):
        fold = read_cases(in_turn / "folds" / vendor / "cases.csv", SEGMENTATION)
        mine = [row for row in cases if row["vendor"] == vendor]
        assert mine == [row for row in fold if row["vendor"] == vendor]
    assert {row["trained_on"] for row in cases if row["vendor"] == "vendor_a"} == {"all", "b"}
    mixed = {row["vendor"] for row in cases if row["site"] == "m"}
    assert mixed == {"vendor_a", "vendor_c"}
    both = [row for row in cases if row["site"] == "m" and row["model"] == "global"]
    assert len(both) == len({(row["case"], row["part"]) for row in both}) == 6 * 3


def test_the_summary_has_every_site_once(in_turn: Path) -> None:
    rows = read_cross_site(in_turn / "cross_site.csv", SEGMENTATION)
    keys = [
        tuple(row[key] for key in ("model", "trained_on", "site", "part", "metric")) for row in rows
    ]
    assert len(keys) == len(set(keys))
    assert {row["site"]: row["vendor"] for row in rows}["m"] == "vendor_a+vendor_c"
    metrics = {row["site"]: set() for row in rows}
    for row in rows:
        metrics[row["site"]].add(row["metric"])
    assert metrics["m"] < metrics["a1"]
    assert "dice" in metrics["m"]
    mixed = [
        row
        for row in read_cases(in_turn / "cases.csv", SEGMENTATION)
        if row["site"] == "m" and row["model"] == "global"
    ]
    dice = [row["dice"] for row in mixed if row["part"] == "myocardium"]
    found = next(
        row["mean"]
        for row in rows
        if (row["model"], row["site"], row["part"], row["metric"])
        == ("global", "m", "myocardium", "dice")
    )
    assert found == pytest.approx(sum(dice) / len(dice))


def test_what_a_site_of_several_vendors_lacks_is_told(in_turn: Path) -> None:
    (said,) = read_run(in_turn).notes
    assert said.startswith("m has images of several vendors") and "Jaccard index" in said
    assert said in (in_turn / "report.html").read_text()


def test_the_page_says_so(in_turn: Path) -> None:
    page = (in_turn / "report.html").read_text()
    assert "4 sites, each left out with its vendor in turn" in page
    assert "At a site whose vendor it never saw" in page
    assert "without vendor vendor_c" in page


def test_without_the_only_vendor_no_site_could_train() -> None:
    config = load(
        [
            "protocol=leave_one_vendor_out",
            "federation.sites={a: [vendor_a], b: [vendor_a, vendor_b]}",
            "federation.unseen=[]",
        ]
    )
    with pytest.raises(
        UserError, match=r"without vendor vendor_a no site could train; .* other vendors"
    ):
        folds(config, open_federation(config)[0])


def test_a_vendors_name_may_be_no_folders(tmp_path: Path) -> None:
    from fedshift.sites.types import Domain, Federation, ImageSource, SiteSpec

    sites = tuple(
        SiteSpec(name, (ImageSource("c", "s", Domain(vendor)),))
        for name, vendor in (("one", "GE/Medical"), ("two", "GE:Medical"), ("three", "Philips"))
    )
    found = folds({"protocol": "leave_one_vendor_out"}, Federation("f", sites, ("x",)))
    assert [fold.vendor for fold in found] == ["GE/Medical", "GE:Medical", "Philips"]
    assert len({fold.name for fold in found}) == 3
    assert not any(mark in fold.name for fold in found for mark in "/:")
    assert found[2].name == "Philips"


def test_a_fold_is_evaluated_and_the_folder_of_all_is_not(in_turn: Path) -> None:
    with pytest.raises(UserError, match=r"no models of its own; name one of .*folds/vendor_a$"):
        evaluate(in_turn, [], None, None)
    out = evaluate(in_turn / "folds" / "vendor_a", [], None, "again")
    assert {row["site"] for row in read_cases(out / "cases.csv", SEGMENTATION)} >= {"a1", "b"}
    shutil.rmtree(out.parent)
