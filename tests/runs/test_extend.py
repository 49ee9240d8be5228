"""A run that is made longer equals one of that length from the start, or is refused with why."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedshift
from fedshift.protocol.messages import Action, Instruction, content_bytes, request
from fedshift.runs import folder
from fedshift.runs.config import load
from fedshift.server.checkpoint import last_round

Simulate = Callable[..., Path]
Contents = Callable[..., dict[str, Any]]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal in all but the record of how the folder came to be."""
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if not name.endswith(("run.json", "figures/curves.png")):
            assert found[name] == content, name


@pytest.mark.parametrize(
    "options",
    [
        ("strategy=fedavg", "baselines=[local,pooled]"),
        ("strategy=fedbn", "method.norm=batch"),
        ("strategy=scaffold", "strategy.fraction=0.6"),
        ("strategy=fedadam", "validate_every=3"),
        ("strategy=fedavg", "clock=hospitals", "budget=time", "budget_limit=1e9"),
        ("strategy=fedavg", "checkpoints_kept=1"),
    ],
    ids=" ".join,
)
def test_a_longer_run_is_that_run_from_the_start(
    options: tuple[str, ...], simulate_undrawn: Simulate, contents: Contents, tmp_path: Path
) -> None:
    whole = simulate_undrawn(tmp_path / "whole", *options, "rounds=4")
    out = simulate_undrawn(tmp_path / "run", *options, "rounds=2")
    simulate_undrawn(out, *options, "rounds=4", "resume=true")
    same(contents(out), contents(whole))
    segments = json.loads((out / "run.json").read_text())["segments"]
    assert [segment["rounds"] for segment in segments] == [2, 4]


def test_a_longer_run_of_one_round_and_its_page(
    simulate: Simulate, contents: Contents, reference: Path, tmp_path: Path
) -> None:
    """Also the figures; with a first round that is validated only because it was the last."""
    out = simulate(tmp_path / "run", "rounds=1", "validate_every=2")
    assert "val_dice" in (out / "rounds.jsonl").read_text()
    simulate(out, "rounds=2", "validate_every=2", "resume=true")
    whole = simulate(tmp_path / "whole", "rounds=2", "validate_every=2")
    same(contents(out), contents(whole))


def test_a_run_that_its_budget_ended_goes_on_with_a_larger_one(
    simulate_undrawn: Simulate, contents: Contents, tmp_path: Path
) -> None:
    options = ("strategy=fedavg", "rounds=4", "budget=bytes")
    out = simulate_undrawn(tmp_path / "run", *options, "budget_limit=1")
    assert last_round(out / "checkpoints") == 1
    large = "budget_limit=1000000000"
    simulate_undrawn(out, *options, large, "resume=true")
    same(contents(out), contents(simulate_undrawn(tmp_path / "whole", *options, large)))


def test_folds_are_made_longer_each(
    simulate_undrawn: Simulate, contents: Contents, tmp_path: Path
) -> None:
    options = ("protocol=leave_one_site_out", "local_steps=1")
    out = simulate_undrawn(tmp_path / "run", *options, "rounds=1")
    simulate_undrawn(out, *options, "rounds=2", "resume=true")
    whole = contents(simulate_undrawn(tmp_path / "whole", *options, "rounds=2"))
    found = contents(out)
    for name in [name for name in whole if name.endswith("config.yaml")]:  # It names its folder.
        del whole[name], found[name]
    same(found, whole)


def test_killed_while_it_is_made_longer_it_is_so_by_the_same_command(
    simulate_undrawn: Simulate,
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("strategy=fedavg", "validate_every=3")
    short = simulate_undrawn(tmp_path / "short", *options)
    whole = contents(simulate_undrawn(tmp_path / "whole", *options, "rounds=4"))

    class Killed(Exception):
        pass

    for name in ("checkpoint.adopt", "provenance.write", "write_yaml", "shutil.rmtree"):
        out = tmp_path / name
        shutil.copytree(short, out)

        def kill(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(f"fedshift.runs.folder.{name}", kill)
            if name == "checkpoint.adopt":  # Another version's run.
                (out / "run.json").unlink()
            with pytest.raises(Killed):
                simulate_undrawn(out, *options, "rounds=4", "resume=force")
        simulate_undrawn(out, *options, "rounds=4", "resume=force")
        same(contents(out), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("strategy=feddg_ga",), "strategy=feddg_ga lets its steps fall over the run's rounds"),
        (("strategy=fine_tuning",), "strategy=fine_tuning trains every site alone in the run's"),
        (("method=online_rendering",), "method=online_rendering trains nothing in the run's last"),
        (("method=drai",), "method=drai trains nothing in so short a run"),
        (("method=unet_gan",), "method=unet_gan trains nothing in so short a run"),
        (("method=style_transfer",), "method=style_transfer trains nothing in so short a run"),
    ],
)
def test_what_depends_on_the_number_of_rounds_is_not_made_longer(
    options: tuple[str, ...], words: str
) -> None:
    assert folder._bound(load([*options, "rounds=2"])).startswith(words)


def test_methods_whose_phases_are_set_are_bound_in_a_short_run_only() -> None:
    for method in ("supervised", "drai", "unet_gan", "style_transfer"):
        assert folder._bound(load([f"method={method}", "rounds=1000"])) == ""


def test_whoever_reads_the_number_of_rounds_says_so() -> None:
    """A strategy, method or rule that does not may be made longer unasked."""
    root = Path(fedshift.__file__).parent
    readers, tellers = set(), set()
    for part in ("strategies", "client/methods", "client/rules"):
        for path in (root / part).rglob("*.py"):
            name = path.relative_to(root / part).parts[0].removesuffix(".py")
            if name == "base":
                continue
            text = path.read_text()
            if re.search(r"(instruction|budget|visit)\.rounds\b", text):
                readers.add(name)
            if "def bound_to_rounds" in text:
                tellers.add(name)
    assert readers == tellers
    assert {"feddg_ga", "fine_tuning", "online_rendering"} < readers


def test_a_message_of_a_longer_run_has_as_many_bytes() -> None:
    sizes = {
        content_bytes(request(Instruction(action=Action.FIT, seed=0, rounds=rounds)))
        for rounds in (1, 10, 1000)
    }
    assert len(sizes) == 1
    (record,) = request(Instruction(action=Action.FIT, seed=0, rounds=7)).config_records.values()
    assert Instruction.from_record(record).rounds == 7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rounds=1",), ("rounds=2", "raised and not lowered to 1")),
        (("rounds=4", "method.lr=0.5"), ("method.lr", "only rounds and budget_limit")),
        (("rounds=4", "local_steps=3"), ("local_steps", "another config")),
    ],
)
def test_what_may_not_change_is_said_and_the_run_left_as_it_is(
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    reference: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    outcome = command("simulate", *tiny, f"out={out}", "resume=true", *overrides)
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_scores_of_the_shorter_run_are_not_taken_for_those_of_the_longer_one(
    command: Callable[..., Any], tiny: tuple[str, ...], reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    (out / "evaluations" / "other").mkdir(parents=True)
    outcome = command("simulate", *tiny, f"out={out}", "resume=true", "rounds=3")
    assert outcome.code == 2
    assert "evaluations holds scores of the models" in outcome.err
    assert (out / "cross_site.csv").exists()


def test_without_the_checkpoint_before_the_last_round_it_is_refused(
    command: Callable[..., Any], simulate_undrawn: Simulate, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    options = ("checkpoints_kept=1", "validate_every=3", "baselines=[]")
    out = simulate_undrawn(tmp_path / "run", *options)
    outcome = command("simulate", *tiny, *options, f"out={out}", "resume=true", "rounds=3")
    assert outcome.code == 2
    assert "checkpoints_kept=1" in outcome.err
    assert (out / "cross_site.csv").exists()
