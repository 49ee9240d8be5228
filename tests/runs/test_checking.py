"""What the doctor knows, a run says: errors stop it, what is accepted and planned is recorded."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kit.repository import ROOT
from PIL import Image

import fedshift
from fedshift import UserError
from fedshift.client.memory import step_cost
from fedshift.client.model import Model
from fedshift.protocol.lock import alone_in
from fedshift.runs.checking import examine, for_report, settle
from fedshift.runs.config import load
from fedshift.runs.federation import task_settings
from fedshift.runs.simulate import run
from fedshift.runs.sweep import Sweep, prepare
from fedshift.sites import Finding
from fedshift.sites.findings import CODES, grouped

METHOD = (
    "method.depth=3",
    "method.width=4",
    "rounds=2",
    "local_steps=2",
    "baselines=[]",
    "engine.devices=cpu",
    "engine.workers=1",
)
HEAD = "path\tlabel_path\tsite\tsubject\tspacing_mm"


def hospital(folder: Path, *, twin: bool = False, empty: bool = False) -> Path:
    """Three sites of three subjects, a table of all; a ``twin`` is one of A's pictures at B again,
    ``empty`` makes two masks of C empty."""
    folder.mkdir(exist_ok=True)
    lines = [HEAD]
    for s, site in enumerate("ABC"):
        for k in range(4):
            name, rng = f"{site}{k}", np.random.default_rng(10 * s + k)
            label = np.zeros((48, 40), np.uint8)
            label[16:30, 12:24] = 1
            picture = rng.normal(90, 9, label.shape) + 60 * label
            if empty and site == "C" and k < 2:
                label[:] = 0
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
            Image.fromarray(label).save(folder / f"{name}_mask.png")
            lines.append(f"{name}.png\t{name}_mask.png\t{site}\t{name}\t0.5")
    if twin:
        (folder / "B1.png").write_bytes((folder / "A1.png").read_bytes())
    table = folder / "table.tsv"
    table.write_text("\n".join(lines) + "\n")
    return table


def options(table: Path, *more: str) -> list[str]:
    return ["federation=manifest", f"data.manifest={table}", "data.labels={x: 1}", *METHOD, *more]


def simulated(out: Path, *overrides: str) -> tuple[Path, str]:
    """Run without figures and page; the folder, and what was printed."""
    told: list[str] = []
    with alone_in(out):
        run(out, load([*overrides, f"out={out}"]), told.append, drawn=False)
    return out, "\n".join(told)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A run whose settings were planned, what it printed, and its table."""
    folder = tmp_path_factory.mktemp("planned")
    table = hospital(folder / "sound", empty=True)
    out, printed = simulated(folder / "run", *options(table))
    return out, printed, table


# The codes.


def _codes() -> dict[str, set[str]]:
    """Every code that the package's source gives a fault, remark, finding or trouble, and where."""
    place = {"FileFault": 0, "Remark": 0, "remark": 0}
    place |= {"Finding": 1, "Trouble": 1, "finding": 1, "of_label": 1}
    root = Path(fedshift.__file__).parent
    found: dict[str, set[str]] = {}
    for part in ("sites", "runs", "client"):
        for path in (root / part).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = {
                target.id: node.value.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                given = [k.value for k in node.keywords if k.arg == "code"]
                if name in place and len(node.args) > place[name]:
                    given.append(node.args[place[name]])
                for value in given:
                    code = constants.get(value.id) if isinstance(value, ast.Name) else None
                    code = value.value if isinstance(value, ast.Constant) else code
                    if isinstance(code, str):
                        found.setdefault(code, set()).add(path.name)
    return found


def test_every_code_has_a_meaning_and_every_meaning_a_code() -> None:
    used = _codes()
    assert len(used) > 80  # That the scan sees them at all.
    assert {code: where for code, where in used.items() if code not in CODES} == {}
    assert [code for code in CODES if code not in used] == []
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", code) for code in used)
    assert max(Counter(CODES.values()).values()) == 1


def test_the_documents_list_the_codes_with_their_meanings() -> None:
    text = (ROOT / "docs" / "sites.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", text, re.M))
    assert {code: rows.get(code) for code in CODES} == CODES


# Sentences.


def finding(site: str, k: int, problem: str = "is odd", file: str = "/home/Meier/x") -> Finding:
    path = f"{file}{k}.png" if file else ""
    return Finding("error", "constant", site, path, problem, "mend it", k)


def test_many_files_are_one_sentence_with_a_count_and_three_names() -> None:
    (group,) = grouped(finding("A", k) for k in range(70))
    assert group.told() == "A: 70 files (x0.png, x1.png, x2.png and 67 more): each is odd; mend it"
    (group,) = grouped(finding("A", k, f"is {k}") for k in range(1, 4))
    assert group.told() == "A: 3 files (x1.png, x2.png and x3.png): the first is 1; mend it"
    assert group.abroad() == f"{CODES['constant']} (constant: row 1, row 2 and row 3)"
    (single,) = grouped([finding("A", 1)])
    assert single.told() == "A: /home/Meier/x1.png: is odd; mend it"


def test_a_file_of_many_images_is_told_once() -> None:
    table = [
        Finding("error", "missing-file", "A", "/d/T.tsv", "is not", "mend", k) for k in (1, 2, 3)
    ]
    (group,) = grouped(table)
    assert group.told() == "A: /d/T.tsv (for 3 images): is not; mend"
    (group,) = grouped([*table, replace(table[0], problem="is odd")])
    assert group.told() == "A: /d/T.tsv (for 3 images): the first of 2 faults: it is not; mend"
    (group,) = grouped([finding("A", 1, "is odd"), finding("A", 1, "is even")])
    assert group.told() == "A: /home/Meier/x1.png: the first of 2 faults: it is odd; mend it"
    (group,) = grouped([finding("A", 1), finding("A", 1), finding("A", 2)])
    assert group.told() == "A: 2 files (x1.png and x2.png): each is odd; mend it"


def test_files_of_one_name_are_told_by_their_paths() -> None:
    (group,) = grouped(finding("A", 0, file=f"/d/{k}/image") for k in range(2))
    assert "/d/0/image0.png and /d/1/image0.png" in group.told()


def test_up_to_three_sites_are_told_each_and_more_are_counted() -> None:
    some = [finding(site, k) for site in "ABC" for k in range(2)]
    assert [group.told().split(":")[0] for group in grouped(some)] == ["A", "B", "C"]
    many = [finding(site, k) for site in "ABCDE" for k in range(2)]
    (group,) = grouped(many)
    assert group.told().startswith("A, B, C and 2 more: 10 files (x0.png, x1.png, ")
    assert group.abroad().endswith("(constant: row 1, row 1, row 1 and 2 more)")


def test_what_concerns_whole_sites_loses_no_word() -> None:
    two = [finding("A", 0, f"lacks {name}", file="") for name in ("liver", "spleen")]
    assert [g.told() for g in grouped(two)] == [
        "A: lacks liver; mend it",
        "A: lacks spleen; mend it",
    ]
    (group,) = grouped(finding(site, 0, file="") for site in "ABCD")
    assert group.told() == "A, B, C and 1 more: 4 sites: is odd; mend it"
    nowhere = Finding("error", "plan", "", "", "cannot be chosen", "set it by hand")
    assert nowhere.told() == "cannot be chosen; set it by hand"


def test_what_goes_abroad_holds_no_path_and_no_text_of_a_file() -> None:
    secret = finding("A", 7, "holds the name Meier", file="/home/Meier/x")
    assert secret.abroad() == "row 7: constant"
    for group in grouped([secret, finding("B", 8, "is Meier's")]):
        assert "Meier" not in group.abroad() and "/" not in group.abroad()


# Errors stop.


def _stopped(outcome: Any, table: Path, out: Path) -> None:
    """One line on stderr names file, code and way out; nothing was trained or scored."""
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert str(table.parent / "B1.png") in line and "duplicate" in line
    assert "keep one of the two rows" in line and "data.accept=[duplicate]" in line
    assert not [*out.rglob("*.safetensors")] and not [*out.rglob("cases.csv")]
    assert "error duplicate: " in outcome.out


def test_an_error_stops_every_command_before_it_trains(
    finished: tuple[Path, str, Path],
    tmp_path: Path,
    command: Callable[..., Any],
) -> None:
    table = hospital(tmp_path / "faulty", twin=True)
    out = tmp_path / "out"
    _stopped(command("simulate", *options(table, f"out={out}")), table, out)
    grid = [one for one in options(table, "seed=0,1", f"out={out}") if one != "baselines=[]"]
    _stopped(command("compare", *grid), table, out)
    trained, _, _ = finished
    asked = command("evaluate", str(trained), "--manifest", str(table), "data.labels={x: 1}")
    _stopped(asked, table, trained / "evaluations")
    checked = command("sites", "check", *options(table))
    assert checked.code == 2 and "error duplicate: " in checked.out
    assert "12 images of 3 sites checked: 1 error" in checked.out
    planned = command("sites", "plan", *options(table))
    assert planned.code == 0 and "1 error would stop a run" in planned.out


def test_compare_tells_a_finding_of_all_its_seeds_once(tmp_path: Path) -> None:
    table = hospital(tmp_path / "sites", empty=True)
    told: list[str] = []
    asked = [one for one in options(table, "seed=0,1,2") if one != "baselines=[]"]
    prepared = prepare(Sweep.parse([*asked, f"out={tmp_path / 'out'}"]), told.append)
    assert len(prepared) == 3
    assert {one.config["data"]["size"] for one in prepared} == {64}
    assert sum("empty-mask" in line for line in told) == 1
    assert sum(line.startswith("data.size=64") for line in told) == 1


def test_check_and_run_say_the_same(tmp_path: Path, command: Callable[..., Any]) -> None:
    table = hospital(tmp_path / "faulty", twin=True, empty=True)

    def told(printed: str) -> list[str]:
        return [line for line in printed.splitlines() if line.startswith(("error ", "warning "))]

    checked = told(command("sites", "check", *options(table)).out)
    stopped = told(command("simulate", *options(table, f"out={tmp_path / 'out'}")).out)
    assert checked == stopped and {line.split()[1] for line in checked} >= {
        "duplicate:",
        "empty-mask:",
    }


@pytest.mark.parametrize("accept", ["[duplicate]", "all"])
def test_what_is_accepted_does_not_stop_and_is_recorded(accept: str, tmp_path: Path) -> None:
    table = hospital(tmp_path / "faulty", twin=True)
    out, printed = simulated(tmp_path / "out", *options(table, f"data.accept={accept}"))
    assert "error duplicate (accepted): B: " in printed
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert stored["data"]["accept"] == (["duplicate"] if accept[0] == "[" else "all")
    (found,) = json.loads((out / "checkpoints" / "findings.json").read_text())
    assert (found["severity"], found["code"], found["sites"]) == ("error", "duplicate", "B")
    from fedshift.server import report

    report.build(out)
    page = (out / "report.html").read_text()
    assert f"<b>B</b>: {CODES['duplicate']} (duplicate: row 7) (accepted)" in page
    assert str(tmp_path) not in found["sentence"]


def test_accepting_something_else_stops_all_the_same(tmp_path: Path) -> None:
    table = hospital(tmp_path / "faulty", twin=True)
    with pytest.raises(UserError, match="duplicate"):
        settle(load(options(table, "data.accept=[label-turned]")))
    with pytest.raises(UserError, match=r"data.accept: no finding 'duplicates'; nearest: duplic"):
        settle(load(options(table, "data.accept=[duplicates]")))


def test_a_plan_that_cannot_be_made_cannot_be_accepted(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    table = hospital(tmp_path / "sites")
    released = "policy.release=[site card, initial model, model update, case metrics]"
    asked = options(table, released, "data.accept=all")
    checked = command("sites", "check", *asked)
    assert (
        checked.code == 2
        and "error plan: nothing is known of the images of A, B and C" in checked.out
    )
    for name in ("spacing_mm", "size", "slice_axis", "normalise"):
        assert f"data.{name}=" in checked.out
    for name in ("simulate", "sites plan"):
        outcome = command(*name.split(), *asked, *([f"out={tmp_path}/o"] * (name == "simulate")))
        assert (
            outcome.code == 2
            and "by hand, such as data.normalise=percentile data.size=" in outcome.err
        )
    by_hand = ("data.spacing_mm=0.5", "data.size=32", "data.slice_axis=2", "data.normalise=none")
    assert command("sites", "check", *asked, *by_hand).code == 0


# What a run records.


def test_a_run_records_numbers_reasons_and_what_the_sites_told(
    finished: tuple[Path, str, Path],
) -> None:
    out, printed, table = finished
    data = yaml.safe_load((out / "config.yaml").read_text())["data"]
    # Labels reach 8 pixels of 0.5 mm up and 8.5 sideways: 64 pixels are the least.
    assert (data["spacing_mm"], data["size"], data["slice_axis"]) == (0.5, 64, 2)
    assert data["normalise"] == "percentile" and data["window"] is None
    assert set(data["planned"]) == {"spacing_mm", "size", "slice_axis", "normalise"}
    for key, why in data["planned"].items():
        assert f"data.{key}={data[key]}: {why}" in printed
    told = json.loads((out / "checkpoints" / "summaries.json").read_text())
    assert set(told) == {"A", "B", "C"}
    # Rows 16 to 29 of 48, columns 12 to 23 of 40: 8 pixels of half a millimetre.
    assert told["A"]["reach_mm"][2] == 4.0 and told["A"]["images"] == 4
    ledger = [json.loads(line) for line in (out / "egress.jsonl").read_text().splitlines()]
    summaries = [line for line in ledger if line["purpose"] == "data summary"]
    assert {line["site"] for line in summaries} == {"A", "B", "C"}
    assert {line["round"] for line in summaries} == {0}
    assert not [line for line in ledger if line["purpose"] == "image hashes"]
    findings = json.loads((out / "checkpoints" / "findings.json").read_text())
    assert {found["code"] for found in findings} >= {"empty-mask"}
    assert findings == for_report(load(options(table)) | {"data": {**data, "cache": None}})


def test_resuming_keeps_the_numbers_though_files_would_give_others(
    finished: tuple[Path, str, Path], cut_short: Callable[..., Path], tmp_path: Path
) -> None:
    whole, _, table = finished
    out = cut_short(whole, tmp_path / "run")
    stored = yaml.safe_load((out / "config.yaml").read_text())
    config = load(options(table, "resume=true"))
    other = {**stored, "data": {**stored["data"], "size": 80, "spacing_mm": 0.75}}
    assert settle(config, earlier=other)["data"]["size"] == 80
    kept = settle(config, earlier=stored)["data"]
    assert kept == stored["data"]
    # A number that is given by hand is another run's, also null.
    config = load(options(table, "resume=true", "data.spacing_mm=null"))
    assert settle(config, earlier=stored)["data"]["spacing_mm"] is None
    _, printed = simulated(out, *options(table, "resume=true"))
    assert "data.size=" not in printed
    assert (out / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()


def test_evaluate_prepares_other_images_as_the_run_did(
    finished: tuple[Path, str, Path], tmp_path: Path, command: Callable[..., Any]
) -> None:
    trained, _, _ = finished
    table = hospital(tmp_path / "other")
    asked = command("evaluate", str(trained), "--manifest", str(table), "data.labels={x: 1}")
    assert asked.code == 0, asked.err
    (stored,) = (trained / "evaluations").glob("*/config.yaml")
    data = yaml.safe_load(stored.read_text())["data"]
    assert (data["spacing_mm"], data["size"], data["normalise"]) == (0.5, 64, "percentile")


def test_image_hashes_leave_only_where_named_and_under_a_key(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    table = hospital(tmp_path / "sites")
    picture = np.asarray(Image.open(tmp_path / "sites" / "A0.png"))
    rng = np.random.default_rng(5).normal(size=(8, 9)).repeat(6, 0).repeat(5, 1)[:, :40]
    strong = (picture * 0.2 + 40 * rng + 90).clip(0, 255).astype(np.uint8)
    Image.fromarray(strong).save(tmp_path / "sites" / "A0.png")
    strong = strong.copy()
    strong[3, 3] += 1  # The same picture for everybody but a computer.
    Image.fromarray(strong).save(tmp_path / "sites" / "C0.png")
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    purposes = yaml.safe_load(
        (Path(fedshift.__file__).parent / "configs/policy/simulation.yaml").read_text()
    )["release"]
    released = f"policy.release=[{','.join([*purposes, 'image hashes'])}]"
    half = command("sites", "check", *options(table, released))
    assert half.code == 2 and "policy.hash_key" in half.err
    key.write_text("short")
    short = command("sites", "check", *options(table, released, f"policy.hash_key={key}"))
    assert short.code == 2 and "fewer than 16 bytes" in short.err
    key.write_text("0123456789abcdef")
    config = load(options(table, released, f"policy.hash_key={key}"))
    told = [f for f in examine(config).findings if f.code == "near-duplicate"]
    assert [(f.site, f.row, f.problem) for f in told] == [("C", 10, "looks like an image at A")]
    assert not [f for f in examine(load(options(table))).findings if f.code == "near-duplicate"]
    out, _ = simulated(tmp_path / "out", *options(table, released, f"policy.hash_key={key}"))
    lines = [json.loads(line) for line in (out / "egress.jsonl").read_text().splitlines()]
    assert {one["site"] for one in lines if one["purpose"] == "image hashes"} == {"A", "B", "C"}
    # The coordinator keeps none of them.
    kept = b"".join(path.read_bytes() for path in (out / "checkpoints").glob("*.json"))
    assert b"hashes" not in kept


def test_what_a_run_writes_is_not_written_by_hand(command: Callable[..., Any]) -> None:
    asked = command("sites", "list", "data.planned={size: mine}")
    assert asked.code == 2 and "data.planned is written by a run, never by hand" in asked.err


def test_sites_plan_prints_what_a_run_would_set(
    finished: tuple[Path, str, Path], command: Callable[..., Any]
) -> None:
    _, printed, table = finished
    asked = command("sites", "plan", *options(table))
    assert asked.code == 0, asked.err
    decided = [line for line in printed.splitlines() if line.startswith("data.")]
    assert len(decided) == 4 and all(line in asked.out for line in decided)
    assert re.search(
        r"a training step of method=supervised at 64 x 64 takes [\d.]+ s and", asked.out
    )
    by_hand = command("sites", "plan", *options(table, "data.size=48"))
    assert "by hand: data.size=48" in by_hand.out and "data.size=48: " not in by_hand.out
    assert command("sites", "plan").out.startswith("A phantom is drawn on the network's grid")


def test_the_memory_of_a_step_does_not_hide_behind_what_was_read_before() -> None:
    config = load([])
    task = task_settings(config, ("label 1",))
    held = np.ones(60_000_000)  # 480 MB, as a volume in the survey
    del held
    # The weights, their gradients and Adam's moments, of 32 bits each, are a part of it.
    nets = Model(config["method"], task, torch.device("cpu"), seed=0).nets
    count = sum(p.numel() for net in nets.values() for p in net.parameters())
    cost = step_cost(config["method"], task, 1, 64)
    assert 4 * 4 * count / 1e6 < cost.megabytes < 2000 and cost.seconds > 0
