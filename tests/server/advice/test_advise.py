"""The advisor: each rule on made-up evidence, its check against comparisons, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kit.measured import SEGMENTATION, measured, write_method

from fedshift import UserError
from fedshift.client.methods import METHODS
from fedshift.protocol.cards import MethodCard
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.protocol.messages import TensorInfo
from fedshift.runs import graded
from fedshift.runs.config import choices
from fedshift.server.advice import rules
from fedshift.server.advice.families import families_of, options
from fedshift.server.advice.rules import Advice, Evidence, advise
from fedshift.server.comparison.advice import check
from fedshift.server.comparison.cells import Cell
from fedshift.server.tables.files import write_cases, write_cross_site, write_shift
from fedshift.server.tables.summary import summarise
from fedshift.strategies import STRATEGIES

SITES = ("a", "b", "c", "d")
ALIKE = {"mmd_p": 0.5, "intensity_js": 0.03, "spectrum_distance": 0.5, "label_shift": 0.05}
OTHER_SCANNER = {"mmd_p": 0.001, "intensity_js": 0.3, "spectrum_distance": 3.0}
OTHER_LABELS = {"label_shift": 0.4}

Pairs = Mapping[tuple[str, str], Mapping[str, float]]


def card(name: str, subjects: int = 12, labelled: int = 48, role: str = "train") -> dict[str, Any]:
    split = {"subjects": subjects, "cases": subjects, "slices": 48, "labelled": labelled}
    return {"name": name, "role": role, "splits": dict.fromkeys(("train", "val", "test"), split)}


def score(model: str, trained_on: str, site: str, dice: float) -> dict[str, Any]:
    return {
        "model": model,
        "trained_on": trained_on,
        "site": site,
        "vendor": "",
        "part": "x",
        "metric": "dice",
        "mean": dice,
        "std": 0.1,
    }


def evidence(
    pairs: Pairs | None = None,
    shared: Mapping[str, float] | None = None,
    home: Mapping[str, float] | None = None,
    **more: Any,
) -> Evidence:
    """Four alike sites and a shared model of Dice 0.9, but for the ``pairs`` and sites given."""
    shift = [
        {"site_a": a, "site_b": b, "metric": metric, "value": value}
        for a, b in combinations(SITES, 2)
        for metric, value in {**ALIKE, **(pairs or {}).get((a, b), {})}.items()
    ]
    values = {**dict.fromkeys(SITES, 0.9), **(shared or {})}
    scores = [score("global", "all", site, dice) for site, dice in values.items()]
    scores += [score("local", site, site, dice) for site, dice in (home or {}).items()]
    return Evidence(
        **{
            "shift": shift,
            "cross_site": scores,
            "task": SEGMENTATION,
            "cards": {name: card(name) for name in SITES},
            "loss": dict.fromkeys(SITES, 0.2),
            **more,
        }
    )


def with_site(name: str, values: Mapping[str, float]) -> Pairs:
    return {pair: values for pair in combinations(SITES, 2) if name in pair}


# Each rule, and what it does not take for its own.


def test_sites_that_do_not_differ_need_nothing() -> None:
    advice = advise(evidence())
    assert advice.families == ("nothing",)
    assert [finding.answer for finding in advice.findings] == ["no", "no", "no"]
    assert "0 of 6 pairs" in advice.sentence


@pytest.mark.parametrize("metric", ["intensity_js", "spectrum_distance"])
def test_appearance_takes_a_difference_that_is_both_large_and_beyond_chance(metric: str) -> None:
    limit = {"intensity_js": rules.INTENSITY_JS, "spectrum_distance": rules.SPECTRUM_DB}[metric]
    large = with_site("d", {metric: 1.01 * limit, "mmd_p": rules.MMD_P})
    advice = advise(evidence(large))
    assert advice.families == ("harmonise",)
    assert "at 3 of 6 pairs" in advice.sentence
    by_chance = with_site("d", {metric: 1.01 * limit, "mmd_p": 1.01 * rules.MMD_P})
    small = with_site("d", {metric: limit, "mmd_p": 0.001})
    assert advise(evidence(by_chance)).families == ("nothing",)
    assert advise(evidence(small)).families == ("nothing",)


def test_one_pair_of_many_is_what_chance_gives() -> None:
    names = [f"s{number}" for number in range(5)]

    def with_pairs(differing: int) -> Advice:
        pairs = list(combinations(names, 2))
        shift = [
            {"site_a": a, "site_b": b, "metric": metric, "value": value}
            for number, (a, b) in enumerate(pairs)
            for metric, value in (ALIKE | (OTHER_SCANNER if number < differing else {})).items()
        ]
        return advise(
            Evidence(
                shift,
                [score("global", "all", name, 0.9) for name in names],
                SEGMENTATION,
                {name: card(name) for name in names},
            )
        )

    assert with_pairs(1).families == ("nothing",)  # 1 of 10 is not more than a tenth
    assert with_pairs(2).families == ("harmonise",)


def test_labels_that_differ_in_volume_call_for_personalising() -> None:
    advice = advise(evidence(with_site("a", OTHER_LABELS)))
    assert advice.families == ("personalise",)
    assert "by up to 40% of what is labelled" in advice.sentence


def test_few_subjects_or_variable_ones_raise_what_chance_gives_in_volume() -> None:
    pairs = with_site("a", {"label_shift": 0.25})
    assert advise(evidence(pairs)).first == "personalise"
    # Two standard errors of 0.2 with 5 subjects a site: 2 x 0.2 x sqrt(2 / 5) = 0.253.
    few = {name: card(name, subjects=5) for name in SITES}
    assert advise(evidence(pairs, cards=few)).first == "nothing"
    # With 12 subjects whose volumes vary by 0.4 of their mean: 2 x 0.4 x sqrt(2 / 12) = 0.327.
    volumes = [{**score("global", "all", site, 50.0), "metric": "volume_ml"} for site in SITES]
    varied = [*evidence().cross_site, *({**row, "std": 20.0} for row in volumes)]
    assert advise(evidence(pairs, cross_site=varied)).first == "nothing"
    alike = [*evidence().cross_site, *({**row, "std": 1.0} for row in volumes)]
    assert advise(evidence(pairs, cross_site=alike)).first == "personalise"


def test_the_shift_that_more_pairs_show_is_treated_first() -> None:
    both = with_site("a", {**OTHER_SCANNER, **OTHER_LABELS})
    assert advise(evidence(both)).families == ("harmonise", "personalise")
    more = {**with_site("b", OTHER_LABELS), **both}
    assert advise(evidence(more)).families == ("personalise", "harmonise")


def test_a_faulty_site_is_left_out_of_the_rest() -> None:
    far = with_site("b", {**OTHER_SCANNER, **OTHER_LABELS})
    loss = {**dict.fromkeys(SITES, 0.2), "b": 0.5}
    advice = advise(evidence(far, shared={"b": 0.5}, home={"b": 0.55}, loss=loss))
    assert advice.families == ("robust",)
    assert advice.suspects == ("b",)
    assert "0 of 3 pairs" in advice.findings[1].said
    assert "reaches 0.550, at the other sites 0.900" in advice.findings[0].said
    assert "2.5 times theirs" in advice.findings[0].said


def test_a_hard_site_is_not_a_faulty_one() -> None:
    loss = {**dict.fromkeys(SITES, 0.2), "b": 0.5}
    # Its own model does well, so its labels can be learnt.
    assert not advise(evidence(shared={"b": 0.5}, home={"b": 0.85}, loss=loss)).suspects
    # It fits its own labels, although no model that was scored does well there.
    assert not advise(evidence(shared={"b": 0.5})).suspects
    # It is learning what it has labelled: most of its loss in the first round is gone.
    learning = {**dict.fromkeys(SITES, 1.0), "b": 1.51}
    assert not advise(evidence(shared={"b": 0.5}, loss=loss, first_loss=learning)).suspects
    stuck = {**dict.fromkeys(SITES, 1.0), "b": 1.49}
    assert advise(evidence(shared={"b": 0.5}, loss=loss, first_loss=stuck)).suspects == ("b",)
    # It has no labels to learn.
    cards = {name: card(name, labelled=0 if name == "b" else 48) for name in SITES}
    assert not advise(evidence(shared={"b": 0.5}, cards=cards, loss={})).suspects
    # A method that tells no loss leaves the scores alone to decide.
    assert advise(evidence(shared={"b": 0.5}, loss={})).suspects == ("b",)


def test_sites_that_train_nothing_can_differ_in_appearance_but_not_be_faulty_or_personal() -> None:
    cards = {name: card(name, role="unseen" if name == "d" else "train") for name in SITES}
    far = with_site("d", {**OTHER_SCANNER, **OTHER_LABELS})
    advice = advise(evidence(far, shared={"d": 0.2}, cards=cards, unseen=frozenset("d")))
    assert advice.families == ("harmonise",)
    assert "fedbn" not in options("harmonise", advice)["strategy"]
    assert "fedbn" in options("harmonise", advise(evidence(far)))["strategy"]


def test_what_the_runs_method_and_task_do_not_serve_is_not_advised() -> None:
    advice = advise(evidence(with_site("d", OTHER_SCANNER)))
    assert "feddg" in options("harmonise", advice)["strategy"]
    assert "style_transfer" in options("harmonise", advice)["method"]

    found = MethodCard(
        tensors("segmenter"), "labelled", (), SEGMENTATION, ("change", "descend"), False
    )
    landmarks = options("harmonise", replace(advice, method=found))

    assert "harmofl" in landmarks["strategy"] and "feddg" not in landmarks["strategy"]
    assert "method" not in landmarks
    assert landmarks["augmentation"] == ["intensity"]
    bare = options("harmonise", replace(advice, method=replace(found, augments=False)))
    assert "augmentation" not in bare and bare["strategy"] == landmarks["strategy"]


def tensors(network: str, sharing: str = "averaged") -> dict[str, TensorInfo]:
    names = ("body.weight", "head.weight", "head.bias")
    return {
        f"{network}/{name}": TensorInfo(network, "weight", sharing, (1,), "float32")
        for name in names
    }


@pytest.mark.parametrize(
    ("network", "sharing", "advised"),
    [
        ("segmenter", "averaged", {"apfl", "ditto", "fedper", "fedrep", "fine_tuning"}),
        ("regressor", "averaged", {"apfl", "ditto", "fine_tuning"}),
        ("segmenter", "broadcast", set()),
    ],
)
def test_a_strategy_that_finds_none_of_its_layers_is_not_advised(
    network: str, sharing: str, advised: set[str]
) -> None:
    found = MethodCard(tensors(network, sharing), "labelled", (), SEGMENTATION, (), False)
    advice = replace(advise(evidence(with_site("d", OTHER_LABELS))), method=found)
    assert set(options("personalise", advice)["strategy"]) == advised


# What is said when little is known.


def test_sites_of_few_subjects_are_not_compared() -> None:
    cards = {name: card(name, subjects=4 if name == "d" else 12) for name in SITES}
    advice = advise(evidence(with_site("d", OTHER_SCANNER), cards=cards))
    assert advice.families == ("nothing",)
    assert "0 of 3 pairs" in advice.findings[1].said
    assert "Too few subjects to be compared with others (at least 5): d (4 subjects)." in (
        advice.sentence
    )


def test_too_little_evidence_gives_no_advice() -> None:
    thin = {name: card(name, subjects=4) for name in SITES}
    advice = advise(evidence(with_site("d", OTHER_SCANNER), cards=thin))
    assert advice.families == () and advice.first is None
    assert advice.headline == "No advice: the evidence is too thin."
    assert [finding.answer for finding in advice.findings] == ["no", "not known", "not known"]
    unlabelled = [row for row in evidence().shift if row["metric"] != "label_shift"]
    assert advise(evidence(shift=unlabelled)).families == ()
    two = [row for row in evidence().cross_site if row["site"] in "ab"]
    assert advise(evidence(cross_site=two)).findings[0].answer == "not known"
    untrained = {**dict.fromkeys(SITES, 0.1), "b": 0.0}
    loss = {**dict.fromkeys(SITES, 0.2), "b": 0.5}
    found = advise(evidence(shared=untrained, loss=loss))
    assert found.suspects == () and found.findings[0].answer == "not known"


def test_unequal_sizes_and_what_is_to_be_won_are_noted() -> None:
    cards = {name: card(name, labelled=192 if name == "c" else 48) for name in SITES}
    home = dict.fromkeys(SITES, 0.95)
    advice = advise(evidence(cards=cards, home=home))
    assert advice.families == ("nothing",)
    assert "c has 192 labelled slices to train on, a 48" in advice.sentence
    assert "0.050 worse than the sites' own models" in advice.sentence
    assert "level with the sites' own" in advise(evidence(home=dict.fromkeys(SITES, 0.9))).sentence
    assert "0.100 better than" in advise(evidence(home=dict.fromkeys(SITES, 0.8))).sentence


# Other tasks.


def of_task(headline: Measure, change: Callable[[float], float], **more: Any) -> Evidence:
    """:func:`evidence` of a task without parts whose headline is ``change`` of the Dice."""
    told = evidence(**more)
    rows = [
        {**row, "metric": headline.name, "mean": change(row["mean"])} for row in told.cross_site
    ]
    task = TaskCard("other", "other", "", (), (headline,), "it is lost")
    return replace(told, task=task, cross_site=rows)


def test_a_ratio_of_which_less_is_better_is_judged_by_what_is_left_to_1() -> None:
    brier = Measure("brier", "Brier score", "lower", low=0, high=1)
    loss = {**dict.fromkeys(SITES, 0.2), "b": 0.5}
    more: dict[str, Any] = {"shared": {"b": 0.5}, "home": {"b": 0.55}, "loss": loss}
    usual, mirrored = advise(evidence(**more)), advise(of_task(brier, lambda x: 1 - x, **more))
    assert mirrored.suspects == usual.suspects == ("b",)
    assert "reaches 0.450, at the other sites 0.100" in mirrored.findings[0].said
    assert mirrored.findings[2].question == "Do the labels differ?"
    better = of_task(brier, lambda x: 1 - x, home=dict.fromkeys(SITES, 0.8))
    assert "0.100 better than the sites' own" in advise(better).sentence


def test_of_what_is_no_ratio_there_is_no_rule_and_the_other_questions_are_asked() -> None:
    error = Measure("radial_error_mm", "radial error", "lower", "mm", low=0)
    more: dict[str, Any] = {"shared": {"b": 0.1}, "home": dict.fromkeys(SITES, 0.8)}
    advice = advise(
        of_task(error, lambda x: 5 - 4 * x, pairs=with_site("a", OTHER_SCANNER), **more)
    )
    assert advice.families == ("harmonise",) and advice.suspects == ()
    assert advice.findings[0].answer == "not known"
    assert "There is no rule for radial error" in advice.sentence
    assert "own models" not in advice.sentence
    assert advise(of_task(error, lambda x: 5 - 4 * x)).families == ("nothing",)


# Families.


def test_every_strategy_that_is_offered_exists_and_suits_the_federation() -> None:
    offered = {name for name in STRATEGIES.names() if STRATEGIES.named(name).family}
    assert offered <= set(choices("strategy"))
    loss = {**dict.fromkeys(SITES, 0.2), "b": 0.5}
    advice = advise(evidence(shared={"b": 0.5}, loss=loss))
    # Four sites, one faulty: the trimmed mean needs 3, Krum 5 and Bulyan 7.
    found = options("robust", advice)["strategy"]
    assert {"median", "trimmed_mean"} <= set(found)
    assert not {"krum", "multi_krum", "bulyan"} & set(found)


def test_a_run_belongs_to_the_families_of_its_strategy_method_and_augmentation() -> None:
    def found(strategy: str, adapts: bool = False, **augmentation: float) -> set[str]:
        node = {"name": "x", "augmentation": {"affine": True, "flip": False, **augmentation}}
        return set(families_of({"strategy": {"name": strategy}, "method": node}, adapts))

    assert found("fedavg") == {"nothing"}
    assert found("fedavg", intensity=1.0) == {"harmonise"}
    assert found("fedavg", adapts=True) == {"harmonise"}
    assert found("fedper") == {"personalise"}
    assert found("fedper", noise=0.5) == {"personalise", "harmonise"}
    assert found("median") == {"robust"}
    assert found("fedprox") == found("local") == set()


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_says_itself_whether_it_adapts(name: str) -> None:
    method = METHODS.named(name)
    assert method.adapts == (name != "supervised")
    told = MethodCard(
        {}, method.participation.value, method.stages, SEGMENTATION, (), False, method.adapts
    ).to_json()
    assert MethodCard.from_json(told).adapts == method.adapts
    del told["adapts"]  # as of a run of before
    assert MethodCard.from_json(told).adapts == method.adapts


# Against a comparison.


def write_cell(
    folder: Path, strategy: str, seed: int, dice: Mapping[str, float], pairs: Pairs | None = None
) -> Cell:
    """A finished run whose subjects scatter around ``dice`` by site, alike in every cell."""
    told = evidence(pairs)
    kind, trained_on = ("local", SITES) if strategy == "local" else ("global", ("all",))
    rows = []
    for trained in trained_on:
        for place, site in enumerate(SITES):
            rng = np.random.default_rng([place, seed])
            for number in range(10):
                row: dict[str, Any] = measured()
                subject = f"{site}-{number}"
                row |= {"model": kind, "trained_on": trained, "site": site, "vendor": "v"}
                row |= {"split": "test", "subject": subject, "case": subject, "part": "x"}
                row |= {"dice": dice[site] + rng.normal(0, 0.01), "failed": 0}
                rows.append(row)
    (folder / "checkpoints").mkdir(parents=True)
    config = {"strategy": {"name": strategy}, "method": {"name": "supervised"}, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"federation": {"name": "x"}}))
    cards = [{**entry, "parts": ["x"]} for entry in told.cards.values()]
    (folder / "checkpoints" / "sites.json").write_text(json.dumps(cards))
    line = {"round": 1, "seconds": 1.0, "bytes_down": 1, "bytes_up": 1, "failed": {}}
    line |= {"rejected": {}, "skipped": None, "baselines": {}}
    line["sites"] = {site: {"loss": 0.5 if dice[site] < 0.6 else 0.2} for site in SITES}
    (folder / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    write_method(folder)
    write_cases(folder / "cases.csv", rows, SEGMENTATION)
    write_shift(folder / "shift.csv", told.shift)
    summary = summarise(rows, SEGMENTATION, seed)
    write_cross_site(folder / "cross_site.csv", summary, SEGMENTATION)
    settings = {"strategy": strategy, "seed": str(seed)}
    return Cell(settings, folder, "done")


@pytest.fixture
def cells(tmp_path: Path) -> Callable[..., list[Cell]]:
    """Finished cells of two seeds: FedAvg at 0.8 everywhere but as ``fedavg`` says, and entrants
    that gain that much on it everywhere."""

    def make(pairs: Pairs, fedavg: Mapping[str, float] | None = None, **gains: float) -> list[Cell]:
        base = {**dict.fromkeys(SITES, 0.8), **(fedavg or {})}
        return [
            write_cell(
                tmp_path / "cells" / f"strategy={name},seed={seed}",
                name,
                seed,
                {site: value + gain + 0.001 * seed for site, value in base.items()},
                pairs,
            )
            for name, gain in {"fedavg": 0.0, **gains}.items()
            for seed in (0, 1)
        ]

    return make


def test_an_entrant_of_the_advised_family_that_wins_bears_the_advice_out(
    cells: Callable[..., list[Cell]],
) -> None:
    found = check(cells(with_site("a", OTHER_SCANNER), fedbn=0.05, fedper=0.08, fedprox=0.2))
    assert found.advice.families == ("harmonise",)
    assert [item.standing.label for item in found.advised] == ["fedbn"]
    assert found.advised[0].standing.difference.value == pytest.approx(0.05)
    # FedProx is of no family and takes no part.
    assert [item.standing.label for item in found.against] == ["fedper", "fedbn"]
    assert found.verdict.startswith("The advice holds: fedbn beats FedAvg (gain +0.050 in Dice")
    assert "Of other families, fedper beats FedAvg (gain +0.080 in Dice" in found.verdict


def test_an_entrant_that_ties_or_loses_does_not(cells: Callable[..., list[Cell]]) -> None:
    found = check(cells(with_site("a", OTHER_LABELS), fedper=-0.05, fedbn=0.0))
    assert found.verdict.startswith("The advice does not hold: fedper loses to FedAvg (gain -0.050")
    assert {item.standing.label: item.result for item in found.against} == {
        "fedper": "loses",
        "fedbn": "ties",
    }


def test_nothing_holds_as_long_as_nobody_wins(
    cells: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    found = check(cells({}, fedper=-0.05))
    assert found.advice.first == "nothing"
    assert found.verdict == "The advice holds: no entrant is shown to beat FedAvg."
    more = write_cell(tmp_path / "w0", "median", 0, dict.fromkeys(SITES, 0.85))
    other = write_cell(tmp_path / "w1", "median", 1, dict.fromkeys(SITES, 0.851))
    paths = sorted((tmp_path / "cells").iterdir())
    kept = [Cell(dict(p.split("=") for p in path.name.split(",")), path, "done") for path in paths]
    assert check([*kept, more, other]).verdict.startswith("The advice does not hold: median beats")


def test_a_faulty_site_does_not_count_in_the_check_of_a_robust_rule(
    cells: Callable[..., list[Cell]],
) -> None:
    found = check(cells({}, fedavg={"b": 0.4}, median=0.05))
    assert found.advice.families == ("robust",)
    assert found.sites == ("a", "c", "d")
    # 0.85 at each of the others; the faulty site's 0.45 would make it 0.75.
    assert found.advised[0].standing.mean.value == pytest.approx(0.85, abs=0.01)


def test_cells_that_train_alone_add_what_a_site_reaches_at_home(
    cells: Callable[..., list[Cell]],
) -> None:
    found = check(cells({}, local=0.1))
    assert any("0.100 worse than the sites' own models" in note for note in found.advice.notes)


def test_a_comparison_without_plain_fedavg_cannot_be_advised_on(
    cells: Callable[..., list[Cell]],
) -> None:
    without = [cell for cell in cells({}, fedbn=0.0) if cell.settings["strategy"] == "fedbn"]
    with pytest.raises(UserError, match="no finished run of FedAvg alone"):
        check(without)
    for cell in without:
        config = yaml.safe_load((cell.folder / "config.yaml").read_text())
        config["protocol"] = "leave_one_site_out"
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="protocol=together"):
        check(without)


# The command.


def test_the_command_advises_on_a_run_as_its_report_does(
    command: Callable[..., Any], reference: Path
) -> None:
    found = command("advise", str(reference))
    assert found.code == 0, found.err
    assert "Advice: " in found.out
    # Three training subjects a site are too few to compare sites.
    assert "Too few subjects to be compared with others" in found.out
    said = found.out.split("Advice: ")[1].splitlines()[0]
    assert f"What to try next: {said}" in (reference / "report.html").read_text()


def test_the_command_checks_a_comparison(
    command: Callable[..., Any], cells: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    made = cells(with_site("a", OTHER_SCANNER), fedbn=0.05)
    run = {cell.folder.name: dict(cell.settings) for cell in made}
    run["strategy=ditto,seed=0"] = {"strategy": "ditto", "seed": "0"}  # not yet run
    (tmp_path / "comparison.json").write_text(json.dumps({"fixed": {}, "axes": {}, "cells": run}))
    found = command("advise", str(tmp_path))
    assert found.code == 0, found.err
    assert "Advice: Harmonise." in found.out
    assert "do not agree" not in found.out
    row = next(line for line in found.out.splitlines() if line.startswith(" fedbn"))
    assert row.split()[:2] == ["fedbn", "harmonise"]
    assert row.split()[3] == "+0.050" and row.split()[-1] == "beats"
    assert "The advice holds: fedbn beats FedAvg" in found.out
    (tmp_path / "comparison.json").write_text("{")
    broken = command("advise", str(tmp_path))
    assert broken.code == 2 and "comparison.json cannot be read" in broken.err


def test_the_command_asks_for_a_folder_that_it_can_advise_on(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    assert "name the folder" in command("advise").err
    assert "name the folder" in command("advise", str(tmp_path), "--graded").err
    assert "not a run folder" in command("advise", str(tmp_path)).err
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    assert "is not finished" in command("advise", str(tmp_path)).err
    (tmp_path / "config.yaml").write_text("protocol: leave_one_site_out\n")
    assert "folds" in command("advise", str(tmp_path)).err
    assert "no list of whole numbers" in command("advise", "--graded", "--seeds", "x").err


def test_grading_counts_the_hits_and_does_not_run_again(
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ("federation.subjects=10", "federation.shift=0", "baselines=[]", "validate_every=0")
    monkeypatch.setattr(graded, "COMMON", (*tiny, *small))
    scanner = graded._cardiac("appearance", "harmonise", "federation.shift=1")
    wrong = graded._cardiac("wrongly graded", "personalise", "federation.shift=1")
    monkeypatch.setattr(graded, "GRADED", (scanner, wrong))
    found = command("advise", "--graded", "--seeds", "3", "--out", str(tmp_path), "--workers", "1")
    assert found.code == 0, found.err
    assert "1 of 2 advices are hits (50%)" in found.out
    rows = [line.split() for line in found.out.splitlines() if line.startswith(" ")]
    assert ["appearance", "harmonise", "hit"] in rows
    assert ["wrongly", "graded", "personalise", "harmonise"] in rows
    written = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.glob("*/cases.csv"))]
    assert len(written) == 2
    again = command("advise", "--graded", "--seeds", "3", "--out", str(tmp_path))
    assert "1 of 2 advices are hits (50%)" in again.out
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written
