"""The report of a run folder, from hand-made folders whose numbers are known."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from kit.measured import DICE, HD95, SEGMENTATION, write_method
from kit.pages import Page, cross_site_row, shown, write_run

from fedshift import UserError
from fedshift.server.report import build
from fedshift.server.report.figures import is_dark, shade, shade_gains, shift_drop
from fedshift.server.report.run import read_run
from fedshift.server.report.words import format_bytes
from fedshift.server.tables.files import write_cross_site


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built run of two sites and an unseen one, three rounds; tests only read it."""
    folder = write_run(tmp_path_factory.mktemp("built") / "run", ["a", "b"], ("x",), rounds=3)
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / "report.html")


def test_the_page_holds_the_numbers_of_the_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",), scores_only=True)
    dice = {("local", "a", "a"): 0.9, ("local", "a", "b"): 0.4, ("global", "all", "b"): 0.8125}
    rows = [cross_site_row(*key, "cavity", "dice", value) for key, value in dice.items()]
    rows += [cross_site_row(*key, "wall", "dice", value - 0.2) for key, value in dice.items()]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)

    page = Page(build(run))

    # Tables are numbered measure|part: mean of both structures, cavity, wall.
    assert [row[0] for row in page.cells["0|0"][1:3]] == ["local, a", "federated"]
    assert page.cells["0|0"][1][-2:] == ["0.800", "0.300"]
    assert page.cells["0|1"][1] == ["local, a", "0.650", "0.400", "0.500", "0.900", "0.400"]
    assert page.cells["0|2"][2][-2:] == ["–", "0.613"]


def test_the_headline_is_the_mean_over_sites(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",), scores_only=True)
    scores = {
        ("global", "all"): {"a": 0.8, "b": 0.7, "x": 0.5},
        ("local", "a"): {"a": 0.9, "b": 0.3, "x": 0.2},
        ("local", "b"): {"a": 0.1, "b": 0.8, "x": 0.4},
        ("pooled", "all"): {"a": 0.9, "b": 0.88, "x": 0.6},
    }
    rows = [
        cross_site_row(*model, site, "cavity", "dice", value)
        for model, sites in scores.items()
        for site, value in sites.items()
    ]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)

    text = " ".join(Page(build(run)).text.split())

    for sentence in (
        "reaches 0.750 mean Dice over 2 training sites (worst: b, 0.700).",
        "single site reach 0.850 at home and 0.200 at the other sites.",
        "Pooled, the upper bound (all data in one place; simulation only), reaches 0.890.",
        "At unseen x: federated 0.500, single-site models 0.300, pooled 0.600.",
    ):
        assert sentence in text


def test_the_page_asks_for_nothing_from_outside(run: Path, page: Page) -> None:
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "link" not in page.tags
    assert "@import" not in (run / "report.html").read_text(encoding="utf-8")


def test_names_from_the_run_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script><img src=http://evil>'
    run = write_run(tmp_path / "run", ["a", evil, "$x_{1}$ [bold]"], structures=(evil, "wall"))

    page = Page(build(run))

    assert page.tags.count("script") == 1
    assert not any("evil" in link for link in page.links)
    assert evil in page.text
    assert evil.split(">", maxsplit=1)[0] in shown(run)


def test_only_the_pages_own_script_may_run(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "missing",
    [
        ("shift.csv",),
        ("egress.jsonl", "checkpoints/sites.json"),
        ("cross_site.csv",),
        ("rounds.jsonl",),
        ("shift.csv", "egress.jsonl", "checkpoints/sites.json", "cross_site.csv", "rounds.jsonl"),
    ],
)
def test_a_part_that_is_missing_is_tolerated(tmp_path: Path, missing: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",))
    for name in missing:
        (run / name).unlink()

    page = Page(build(run))

    assert "Configuration" in page.text
    assert ("No model has been scored yet" in page.text) == ("cross_site.csv" in missing)
    assert shown(run)


def test_one_site_and_a_run_without_local_models_are_reported(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", ["a"])
    federated = write_run(tmp_path / "federated", ["a", "b"])
    rows = [cross_site_row("global", "all", site, "cavity", "dice", 0.5) for site in ("a", "b")]
    write_cross_site(federated / "cross_site.csv", rows, SEGMENTATION)

    (alone / "shift.csv").unlink()
    page = Page(build(alone)).text
    assert "over 1 training site." in page
    assert "No shift between sites was measured: there is one site, and shift is between" in page
    assert "cannot be set against a drop" in Page(build(federated)).text
    assert not (federated / "figures" / "shift_drop.png").exists()


def test_sites_that_trained_no_model_are_unseen_in_an_evaluation(tmp_path: Path) -> None:
    scores = {("local", "a", "a"): 0.9, ("local", "a", "new"): 0.25, ("global", "all", "new"): 0.5}
    rows = [cross_site_row(*key, "cavity", "dice", value) for key, value in scores.items()]
    (tmp_path / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    write_method(tmp_path)
    write_cross_site(tmp_path / "cross_site.csv", rows, SEGMENTATION)

    assert "At unseen new: federated 0.500, single-site models 0.250." in shown(tmp_path)


def test_an_evaluation_takes_who_trained_from_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",), scores_only=True)
    folder = run / "evaluations" / "other"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("data: {manifest: other.tsv}\n", encoding="utf-8")
    # Site b has no model of its own here, yet it took part in training.
    scores = {("local", "a"): 0.6, ("global", "all"): 0.7}
    rows = [
        cross_site_row(*model, site, "wall", "dice", value - 0.1 * (site == "new"))
        for model, value in scores.items()
        for site in ("a", "b", "x", "new")
    ]
    write_cross_site(folder / "cross_site.csv", rows, SEGMENTATION)

    assert read_run(folder).unseen == {"x", "new"}
    assert "over 2 training sites" in shown(folder)

    page = Page(build(run))

    assert "Dice on every image of other.tsv" in page.text
    table = page.cells["evaluation other"]
    assert [row[0] for row in table] == ["model", "local, a", "federated"]
    assert table[2][1:] == ["0.700", "0.700", "0.000", "0.700", "0.700", "0.600", "0.700"]
    # The unseen sites come last, by name.
    assert table[0][4:] == ["a", "b", "newunseen", "xunseen"]


def test_a_site_left_out_in_turn_is_scored_by_models_that_never_saw_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for site in ("a", "b/c"):
        fold = write_run(run / "folds" / site.replace("/", " "), ["d"], ("x",), rounds=2)
        notes = {"problems": [f"model at {site}: refused"], "encoder": ""}
        (fold / "checkpoints" / "evaluation.json").write_text(json.dumps(notes))
    (run / "config.yaml").write_text("protocol: leave_one_site_out\nrounds: 2\n")
    scores = {
        ("local", "a"): {"b/c": 0.3},
        ("local", "b/c"): {"a": 0.5},
        ("global", "all"): {"a": 0.8, "b/c": 0.6},
        ("pooled", "all"): {"a": 0.9, "b/c": 0.7},
    }
    rows = [
        cross_site_row(*model, site, "wall", "dice", value)
        for model, sites in scores.items()
        for site, value in sites.items()
    ]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)

    page = Page(build(run))
    text = " ".join(page.text.split())
    printed = " ".join(shown(run).split())

    for sentence in (
        "At a site that it never saw, the federated model reaches 0.700 mean Dice (2 sites, "
        "each left out in turn; worst: b/c, 0.600).",
        "Models trained at a single other site reach 0.400 there.",
        "Pooled without the site, the upper bound (all data in one place; simulation only), "
        "reaches 0.800.",
    ):
        assert sentence in text
        assert sentence in printed
    assert "Each column shows models that never saw that site" in text
    assert "each site by models that never saw it" in printed
    table = {row[0]: row[1:] for row in page.cells["0|0"]}
    assert table["federated, without the site"] == ["0.700", "0.600", "0.200", "0.800", "0.600"]
    assert table["local, a"][3:] == ["–", "0.300"]
    links = [link for link in page.links if not link.startswith("data:")]
    assert links[-2:] == ["folds/a/report.html", "folds/b%20c/report.html"]
    # What went wrong in the folds is not lost: site d failed in round 2 of each, and was rejected.
    assert "without a: model at a: refused" in text
    assert ["d", "without b c: failed", "1", "2", "out of memory"] in page.cells[""]
    assert "4 failures during the run" in text
    assert "training site" not in text


def test_a_site_without_labels_in_turn_is_called_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for site in ("a", "b"):
        write_run(run / "folds" / site, ["d"], scores_only=True)
    (run / "config.yaml").write_text("protocol: unlabel_one_site\nrounds: 2\n")
    scores = {("global", "all"): {"a": 0.8, "b": 0.6}, ("source", "all"): {"a": 0.5, "b": 0.3}}
    rows = [
        cross_site_row(*model, site, "wall", "dice", value)
        for model, sites in scores.items()
        for site, value in sites.items()
    ]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)

    page = Page(build(run))
    text = " ".join(page.text.split())

    sentence = (
        "At a site whose labels it never saw, the federated model reaches 0.700 mean Dice "
        "(2 sites, each without labels in turn; worst: b, 0.600)."
    )
    assert sentence in text
    assert sentence in " ".join(shown(run).split())
    assert "Each column shows models that never saw a label of that site" in text
    assert "without the labels of a" in text
    assert "left out" not in text
    assert [row[0] for row in page.cells["0|0"][1:]] == [
        "source, without the site's labels",
        "federated, without the site's labels",
    ]


def test_the_vendors_have_a_table_where_some_have_several_sites(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b", "c"], structures=("wall",), scores_only=True)

    def rows(vendors: dict[str, str]) -> list[dict[str, Any]]:
        scores = {
            ("local", "a"): {"a": 0.9, "b": 0.5, "c": 0.1},
            ("global", "all"): {"a": 0.8, "b": 0.7, "c": 0.6},
        }
        return [
            cross_site_row(*model, site, "wall", "dice", value, vendor=vendors[site])
            for model, sites in scores.items()
            for site, value in sites.items()
        ]

    write_cross_site(
        run / "cross_site.csv", rows({"a": "Philips", "b": "Philips", "c": "GE+X"}), SEGMENTATION
    )
    page = Page(build(run))
    assert page.cells["vendors"] == [
        ["model", "GE+X1 site", "Philips2 sites"],
        ["local, a", "0.100", "0.700"],
        ["federated", "0.600", "0.750"],
    ]
    assert "several vendors counts as a vendor of its own" in page.text
    assert page.cells["0|0"][0][4:] == ["aPhilips", "bPhilips", "cGE+X"]

    # One vendor each: the columns say it all; a vendor that is the site's name is not repeated.
    write_cross_site(run / "cross_site.csv", rows({"a": "a", "b": "GE", "c": ""}), SEGMENTATION)
    page = Page(build(run))
    assert "vendors" not in page.cells
    assert page.cells["0|0"][0][4:] == ["a", "bGE", "c"]


def test_advice_and_gaps_of_the_evaluation_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",), rounds=1)
    gaps = [f"local model of a at b: <reason> {number}" for number in range(22)]
    notes = {"problems": gaps, "encoder": "the <federated> model"}
    (run / "checkpoints" / "evaluation.json").write_text(json.dumps(notes), encoding="utf-8")

    page = Page(build(run))

    assert "22 gaps in the evaluation" in page.text
    assert page.text.index("label shares") < page.text.index("What to try next: No advice")
    assert all(gap in page.text for gap in gaps[:20])
    assert "and 2 more, in checkpoints/evaluation.json" in page.text
    printed = shown(run)
    assert "Features: the <federated> model." in page.text
    assert "What to try next: No advice" in printed
    assert f"not evaluated: {gaps[0]}" in printed

    (run / "checkpoints" / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"evaluation\.json is not JSON"):
        build(run)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a"])
    (run / "figures").write_text("a file where the folder should be")

    with pytest.raises(UserError, match=r"cannot write .*figures.*cross_site_dice\.png"):
        build(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("train", "unseen"),
    [
        (["vendor_a", "vendor_b", "vendor_c"], ("vendor_d",)),
        (["UCL", "CHUM", "NWU", "Juntendo", "Milan", "CEITEC"], ()),
        (["university hospital", "clinic", "heart centre of the north"], ("x",)),
    ],
)
def test_in_80_columns_no_models_name_wraps(
    tmp_path: Path, train: list[str], unseen: tuple[str, ...]
) -> None:
    run = write_run(tmp_path / "run", train, unseen)
    rows = read_run(run).cross_site
    extra = [
        cross_site_row("personal", home, site, "wall", "dice", 0.5)
        for home in train
        for site in [*train, *unseen]
        if site != home
    ]
    write_cross_site(run / "cross_site.csv", rows + extra, SEGMENTATION)

    lines = shown(run, width=80).splitlines()

    assert max(map(len, lines)) <= 80
    for name in (
        "federated",
        "pooled",
        *(f"{kind} {s}" for kind in ("local", "personal") for s in train),
    ):
        assert sum(line.startswith(f" {name} ") for line in lines) == 1
    for line in lines:
        if line.startswith(" federated"):
            assert len(line.split()) == 1 + len(train) + len(unseen) + 2


def test_the_strongest_correlations_come_first(run: Path) -> None:
    found = read_run(run).correlations
    strength = [abs(item.rho) for item in found]

    assert len(found) == 4
    assert strength == sorted(strength, reverse=True)
    lines = shown(run).splitlines()
    start = next(index for index, line in enumerate(lines) if "Spearman" in line)
    named = [
        line for line in lines[start:] if line.startswith((" amplitude", " int", " fe", " la"))
    ]
    assert [line.split()[-3] for line in named] == [f"{item.rho:.3f}" for item in found[:3]]
    assert "and 1 more in the report" in shown(run)


def test_failures_are_counted_and_named(run: Path, page: Page) -> None:
    assert "3 failures during the run" in page.text
    table = [row for row in page.cells[""] if row[1:2] == ["failed"]]
    assert table == [["b", "failed", "2", "2–3", "out of memory"]]
    assert "a rejected 1 time: non-finite update" in shown(run)


def test_problems_of_every_arm_are_gathered_over_the_rounds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], rounds=1)
    line = json.loads((run / "rounds.jsonl").read_text(encoding="utf-8"))
    line["baselines"]["local"]["failed"] = {"b": "timeout"}
    line["sites"]["a"]["nonfinite_steps"] = 2.0
    lines = [{**line, "round": 1}, {**line, "round": 2, "skipped": "too few"}]
    text = "".join(json.dumps(item) + "\n" for item in lines)
    (run / "rounds.jsonl").write_text(text, encoding="utf-8")

    assert [dataclasses.astuple(problem) for problem in read_run(run).problems] == [
        ("local model: failed", "b", "timeout", (1, 2)),
        ("non-finite gradient", "a", "some of its training steps", (1, 2)),
        ("round skipped", "all sites", "too few", (2,)),
    ]


def test_what_left_each_real_site_adds_up(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.cells[""] if row}

    # Three rounds of 5,000 + 2,500 bytes at each training site, and two numbers of 8 bytes; the
    # unseen site sends the numbers only, and the simulated pooled site does not count.
    names = "arrays: segmenter.head.weight, segmenter.stem.weight"
    assert rows["model update"] == ["22.5 kB", "22.5 kB", "–", "12", "45.0 kB", names]
    assert rows["all"][:5] == ["22.5 kB", "22.5 kB", "48 B", "30", "45.1 kB"]


def test_a_sites_notes_stand_before_the_numbers(page: Page) -> None:
    assert "in one place;" in page.text
    assert page.text.count("in one place") == page.text.count("all data in one place")
    note = page.text.index("single subject split by blocks of slices")
    assert note < page.text.index("Every model at every site")


def test_a_note_of_several_sites_is_said_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b", "c"], scores_only=True)
    path = run / "checkpoints" / "sites.json"
    cards = json.loads(path.read_text(encoding="utf-8"))
    for card in cards[:2]:
        card["notes"] = ["spacing unknown"]
    path.write_text(json.dumps(cards), encoding="utf-8")

    text = Page(build(run)).text

    assert "a, b: spacing unknown" in text
    assert "c: single subject" in text


def test_the_same_contents_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    twin = write_run(tmp_path / "twin", ["a", "b"], ("x",), rounds=3)
    build(twin)
    contents = [
        {path.name: path.read_bytes() for path in [folder / "report.html", *figures]}
        for folder in (run, twin)
        for figures in [sorted((folder / "figures").iterdir())]
    ]

    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "report.html",
        "curves.png",
        "egress.png",
        "shift_drop.png",
        "cross_site_dice.png",
        "cross_site_hd95_mm.png",
    }


def test_many_sites_get_one_row_each(tmp_path: Path) -> None:
    sites = [f"site_{number:02d}" for number in range(14)]
    run = write_run(tmp_path / "run", sites, structures=("cavity",), rounds=2)

    page = Page(build(run))

    rows = page.cells["0|0"]
    assert [row[0] for row in rows[1:]] == sites
    assert rows[0][1:3] == ["local, the site's own", "local, mean of other sites'"]
    dice = {
        (row["trained_on"], row["site"]): row["mean"]
        for row in read_run(run).cross_site
        if (row["model"], row["metric"]) == ("local", "dice")
    }
    others = [dice[other, "site_07"] for other in sites if other != "site_07"]
    assert rows[8][1:3] == [f"{dice['site_07', 'site_07']:.3f}", f"{np.mean(others):.3f}"]
    assert "site_13" in shown(run)  # the failure
    assert "local, site_00" not in shown(run)


def test_examples_are_embedded_and_those_left_out_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a"], metrics=("dice",))
    build(run)
    picture = (run / "figures" / "curves.png").read_bytes()
    before = (run / "report.html").read_text(encoding="utf-8").count("data:image/png")
    for number in range(14):
        (run / "figures" / f"examples_s{number:02d}.png").write_bytes(picture)

    html = build(run).read_text(encoding="utf-8")

    assert html.count("data:image/png") == before + 12
    assert "2 more are in" in html
    assert "never leave the site" in html


def test_what_the_method_shows_is_embedded_by_site(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"], ("x",), metrics=("dice",))
    build(run)
    figures = run / "figures"
    picture = (figures / "curves.png").read_bytes()
    before = (run / "report.html").read_text(encoding="utf-8").count("data:image/png")
    (tmp_path / "secret.png").write_bytes(picture)
    listed = [(site, f"method_{site}-{name}.png") for site in ("a", "x") for name in ("one", "two")]
    for _, file in listed:
        (figures / file).write_bytes(picture)
    # Neither a file that is gone nor one outside the folder is shown.
    listed += [("b", "method_b-one.png"), ("b", "../../secret.png")]
    texts = {"title": "<b>Pairs</b>", "caption": "original & translated"}
    shown = [{"site": site, "file": file, **texts} for site, file in listed]
    (figures / "method.json").write_text(json.dumps(shown), encoding="utf-8")

    page = Page(build(run))
    html = (run / "report.html").read_text(encoding="utf-8")

    assert html.count("data:image/png") == before + 4
    assert page.text.count("<b>Pairs</b>") == 4
    assert page.text.count("original & translated") == 4
    folds = [part.split("</details>")[0] for part in html.split('<details class="site"')[1:]]
    assert [part.startswith(" open>") for part in folds] == [True, True]
    assert "<summary>x<small>unseen</small></summary>" in folds[1]

    # Of many, the first site's are open and the others wait.
    (figures / "method.json").write_text(json.dumps(2 * shown[:4]), encoding="utf-8")
    html = build(run).read_text(encoding="utf-8")
    folds = html.split('<details class="site"')[1:]
    assert [part.startswith(" open>") for part in folds] == [True, False]

    (figures / "method.json").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match=r"method\.json is not JSON"):
        build(run)


def test_the_best_of_a_column_is_marked_and_pooled_does_not_compete(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "b"])
    scores = {"local": 0.6, "global": 0.7, "pooled": 0.9}
    for metric, best in (("dice", "global"), ("hd95_mm", "local"), ("volume_ml", None)):
        rows = [
            cross_site_row(model, "a" if model == "local" else "all", "a", "wall", metric, value)
            for model, value in scores.items()
        ]
        write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)
        matrix = read_run(run).matrix(SEGMENTATION.measure(metric))
        marked = [matrix.models[row][0] for row in np.flatnonzero(matrix.best[:, 0])]
        assert marked == ([best] if best else [])


def test_darker_cells_are_better_and_their_numbers_readable() -> None:
    def luminance(rgba: np.ndarray) -> np.ndarray:
        linear = np.where(rgba <= 0.04045, rgba / 12.92, ((rgba + 0.055) / 1.055) ** 2.4)
        return linear[..., :3] @ np.array([0.2126, 0.7152, 0.0722])

    values = np.linspace(0, 1, 21)
    dice, distance = shade(values, DICE), shade(values, HD95)

    assert (np.diff(luminance(dice)) < 0).all()
    assert (np.diff(luminance(distance)) > 0).all()
    signed = shade(values - 0.5, SEGMENTATION.measure("volume_error_ml"))
    volume = shade(values, SEGMENTATION.measure("volume_ml"))
    for color in (*dice, *signed, *shade_gains(values - 0.5, 0.1), *volume):
        light = float(luminance(color))
        contrast = 1.05 / (light + 0.05) if is_dark(color) else (light + 0.05) / 0.05
        assert contrast > 4.5


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a"])
    with (run / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 5, "sec')

    with pytest.raises(UserError, match=r"rounds\.jsonl line 5"):
        build(run)


def test_bytes_are_printed_in_decimal_units() -> None:
    printed = [format_bytes(count) for count in (0, 999, 1000, 999_960, 34_500_000, 2e12)]
    assert printed == ["0 B", "999 B", "1.0 kB", "1.0 MB", "34.5 MB", "2000.0 GB"]


def test_an_upper_bound_that_is_none_in_this_run_is_called_so() -> None:
    from fedshift.server.report.answer import Answer

    nan = float("nan")
    values = {"home": nan, "away": nan, "lost": nan, "personal": nan, "parts_told": ()}
    unseen = {"unseen": (), "unseen_federated": nan, "unseen_single": nan, "unseen_pooled": nan}

    def pooled(value: float) -> str:
        found = Answer(DICE, False, 2, 0.7, "b", 0.6, pooled=value, **values, **unseen)
        return found.sentences()[-1]

    assert pooled(0.65).endswith("reaches 0.650, in this run less than federated.")
    assert pooled(0.75).endswith("reaches 0.750.")


@pytest.mark.parametrize(
    ("rho", "told"), [(math.nan, "2 pairs"), (0.5, "ρ = 0.50, p = 0.250, 2 pairs")]
)
def test_what_does_not_correlate_is_not_titled_nan(rho: float, told: str) -> None:
    found = SimpleNamespace(metric="intensity_js", rho=rho, p_value=rho / 2, n_pairs=2)
    pairs = [SimpleNamespace(home=home, shift=0.1, drop=0.2) for home in "ab"]
    run = SimpleNamespace(correlations=[found], pairs=lambda metric: pairs, headline=DICE)
    (axes,) = shift_drop(cast("Any", run)).axes
    assert axes.get_title().splitlines()[1] == told
