"""A run notes with what it was made, and does not go on with anything else unasked."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import fedshift
from fedshift.protocol.storage import read_yaml, write_yaml
from fedshift.runs import provenance
from fedshift.server import checkpoint

Command = Callable[..., Any]


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


@pytest.fixture
def half_done(reference: Path, cut_short: Callable[..., Path], tmp_path: Path) -> Path:
    return cut_short(reference, tmp_path / "run")


def made_with(run: Path, **others: str) -> None:
    """As if the run had been made with ``others``."""
    node = json.loads((run / "run.json").read_text())
    node["segments"][-1] |= others
    (run / "run.json").write_text(json.dumps(node))


def segments(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["segments"]
    return found


def test_a_run_notes_versions_and_code(reference: Path) -> None:
    node = json.loads((reference / "run.json").read_text())
    assert node["format"] == 1
    (segment,) = node["segments"]
    code = segment.pop("code")
    assert re.fullmatch("[0-9a-f]{32}", code)
    assert segment == {
        "after_round": 0,
        "rounds": 2,
        "fedshift": fedshift.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "flwr", "numpy")},
    }


def test_the_hash_is_of_all_code_and_configs_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "package"
    for part in ("runs", "configs/data", "server/report", "tests", "docs"):
        (root / part).mkdir(parents=True)
    files = ["__init__.py", "runs/a.py", "configs/data/b.yaml", "server/report/c.py"]
    for name in (*files, "tests/d.py", "docs/e.md", "server/f.txt"):
        (root / name).write_text("x = 1\n")
    monkeypatch.setattr(fedshift, "__file__", str(root / "__init__.py"))
    before = provenance.code_hash.__wrapped__()
    assert provenance.code_hash.__wrapped__() == before
    for name in ("tests/d.py", "docs/e.md", "server/f.txt"):
        (root / name).write_text("x = 2\n")
    assert provenance.code_hash.__wrapped__() == before
    for name in files:
        (root / name).write_text("x = 2\n")
        assert provenance.code_hash.__wrapped__() != before
        (root / name).write_text("x = 1\n")
    (root / "runs" / "a.py").rename(root / "runs" / "other.py")
    assert provenance.code_hash.__wrapped__() != before


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"torch": "1.0", "python": "2.7"}, ("python 2.7 (here 3", "torch 1.0 (here")),
        ({"code": "0" * 32}, ("another state of fedshift's code",)),
        (None, ("there is no run.json",)),
    ],
)
def test_a_half_done_run_goes_on_with_others_only_if_asked_to(
    command: Command,
    tiny: tuple[str, ...],
    half_done: Path,
    reference: Path,
    others: dict[str, str] | None,
    words: tuple[str, ...],
) -> None:
    if others is None:
        (half_done / "run.json").unlink()
    else:
        made_with(half_done, **others)
    outcome = command("simulate", *tiny, f"out={half_done}", "resume=true")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert all(word in outcome.err for word in (*words, "resume=force")), outcome.err
    assert "flwr" not in outcome.err
    assert command("simulate", *tiny, f"out={half_done}", "resume=force").code == 0
    assert (half_done / "cases.csv").read_bytes() == (reference / "cases.csv").read_bytes()
    noted = [(one["after_round"], one["torch"]) for one in segments(half_done)]
    here = (1, version("torch"))
    if others is None:
        assert noted == [here]
    else:
        assert noted == [(0, others.get("torch", version("torch"))), here]
    # From now on it is a run of these versions.
    assert command("simulate", *tiny, f"out={half_done}", "resume=true").code == 0


def test_a_finished_run_stands_and_says_so(
    command: Command, tiny: tuple[str, ...], finished: Path
) -> None:
    made_with(finished, torch="1.0")
    before = (finished / "run.json").read_bytes(), (finished / "cases.csv").read_bytes()
    outcome = command("simulate", *tiny, f"out={finished}", "resume=true")
    assert outcome.code == 0
    assert f"{finished} stands as it was made: made with torch 1.0" in outcome.out
    assert ((finished / "run.json").read_bytes(), (finished / "cases.csv").read_bytes()) == before


def test_a_run_before_the_format_can_be_evaluated_and_forced(
    command: Command, tiny: tuple[str, ...], finished: Path
) -> None:
    """Its checkpoints are known by the hash of the whole configuration."""
    import yaml

    from fedshift.server import checkpoint

    (finished / "run.json").unlink()
    config = yaml.safe_load((finished / "config.yaml").read_text())
    for path in (finished / "checkpoints").glob("round_*.json"):
        node = json.loads(path.read_text()) | {"run": checkpoint.fingerprint(config)}
        path.write_text(json.dumps(node))
    assert command("evaluate", str(finished)).code == 0
    shutil.rmtree(finished / "evaluations")
    asked = ("simulate", *tiny, f"out={finished}", "rounds=3")
    assert "resume=force" in command(*asked, "resume=true").err
    assert command(*asked, "resume=force").code == 0
    assert (finished / "checkpoints" / "round_0003.json").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": "1"}', '{"format": 1, "segments": [5]}']
)
def test_a_damaged_record_is_one_sentence(
    command: Command, tiny: tuple[str, ...], half_done: Path, text: str
) -> None:
    (half_done / "run.json").write_text(text)
    outcome = command("simulate", *tiny, f"out={half_done}", "resume=force")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "run.json" in outcome.err


def test_a_folder_of_a_newer_format_is_left_alone(
    command: Command, tiny: tuple[str, ...], half_done: Path
) -> None:
    (half_done / "run.json").write_text('{"format": 2, "segments": []}')
    outcome = command("simulate", *tiny, f"out={half_done}", "resume=force")
    assert outcome.code == 2
    assert "newer fedshift (format 2, this one knows 1)" in outcome.err
    assert not (half_done / "cross_site.csv").exists()


def test_a_comparison_keeps_finished_cells_and_names_what_it_cannot_go_on_with(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    asked = ("compare", *tiny, "seed=0,1,2", f"out={tmp_path / 'all'}")
    assert command(*asked).code == 0
    cells = sorted((tmp_path / "all" / "cells").iterdir())
    for cell in cells[:2]:
        made_with(cell, torch="1.0")
    (cells[1] / "cross_site.csv").unlink()
    before = (cells[0] / "cases.csv").stat()
    outcome = command(*asked)
    assert outcome.code == 0
    told = " ".join(outcome.out.split())
    assert "1 finished cell stands as it was made" in told
    assert "torch 1.0" in told
    assert "1 cell failed" in told
    assert "remove its folder" in told
    assert (cells[0] / "cases.csv").stat() == before


def as_of_an_older_fedshift(run: Path) -> None:
    """As before there were ``run.json``, plans, partial labels, pairs to choose and tasks."""
    (run / "run.json").unlink()
    config = read_yaml(run / "config.yaml")
    for key in ("planned", "window", "accept", "empty_masks", "annotates"):
        del config["data"][key]
    del config["shift"], config["policy"]["hash_key"]
    config["policy"]["release"].remove("data summary")
    config["data"]["size"] = 128
    write_yaml(run / "config.yaml", config)
    for path in (run / "checkpoints").glob("round_*.json"):
        described = json.loads(path.read_text()) | {"run": checkpoint.fingerprint(config)}
        path.write_text(json.dumps(described))
    method = json.loads((run / "checkpoints" / "method.json").read_text())
    del method["complete_labels"], method["task"], method["offers"]
    method["segmenting"] = True
    (run / "checkpoints" / "method.json").write_text(json.dumps(method))
    cards = json.loads((run / "checkpoints" / "sites.json").read_text())
    for card in cards:
        del card["teaches"], card["complete"]
        card["structures"] = card.pop("parts")
    (run / "checkpoints" / "sites.json").write_text(json.dumps(cards))


def test_a_run_of_before_the_newer_settings_goes_on_and_is_scored(
    command: Command, tiny: tuple[str, ...], half_done: Path, reference: Path
) -> None:
    as_of_an_older_fedshift(half_done)
    stopped = command("simulate", *tiny, f"out={half_done}", "resume=true")
    assert stopped.code == 2
    assert "there is no run.json" in stopped.err
    assert "resume=force" in stopped.err
    other = command("simulate", *tiny, f"out={half_done}", "resume=force", "local_steps=3")
    assert other.code == 2
    assert "another config (local_steps)" in other.err
    assert command("simulate", *tiny, f"out={half_done}", "resume=force").code == 0
    assert (half_done / "cases.csv").read_bytes() == (reference / "cases.csv").read_bytes()


def test_a_finished_run_of_before_the_newer_settings_is_scored_again(
    command: Command, tiny: tuple[str, ...], finished: Path, reference: Path
) -> None:
    as_of_an_older_fedshift(finished)
    outcome = command("evaluate", str(finished), "--name", "again")
    assert outcome.code == 0, outcome.err
    again = (finished / "evaluations" / "again" / "cross_site.csv").read_bytes()
    assert again == (reference / "cross_site.csv").read_bytes()
    outcome = command("simulate", *tiny, f"out={finished}", "resume=true")
    assert outcome.code == 0, outcome.err
    assert "stands as it was made: there is no run.json" in " ".join(outcome.out.split())


def test_a_finished_run_of_before_there_were_tasks_is_reported_and_advised_on(
    command: Command, finished: Path
) -> None:
    asked = [(verb, str(finished)) for verb in ("report", "advise")]
    now = [command(*words) for words in asked]
    as_of_an_older_fedshift(finished)
    for words, outcome in zip(asked, now, strict=True):
        before = command(*words)
        assert (before.code, before.out) == (0, outcome.out)
