"""A run's folder: begun, gone on with, or made longer; anything else in it is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedshift import UserError, strategies
from fedshift.client.methods import METHODS
from fedshift.protocol.storage import keep_lines, write_yaml
from fedshift.runs import provenance
from fedshift.runs.config import Config, completed
from fedshift.runs.plugins import method_settings
from fedshift.runs.stored import read_config
from fedshift.server import checkpoint, tracking
from fedshift.server.record import IDENTITY, read_rounds, untrained

_BEGUN = {
    "config.yaml",
    provenance.NAME,
    "checkpoints",
    "rounds.jsonl",
    "egress.jsonl",
    tracking.FOLDER,
}
"""All that a run's folder holds before its first round is finished."""

_FINAL = (
    "cross_site.csv",  # first: without it a run is not finished
    "cases.csv",
    "shift.csv",
    "rounds.csv",
    "report.html",
    "checkpoints/evaluation.json",
)
"""What is made when the rounds are done, and again when there are more."""


def open_folder(out: Path, config: Config, say: Callable[[str], None]) -> int:
    """Make ``out`` ready for the run of ``config``; return how many of its rounds it holds.

    A run that never finished a round, or in which no site trained, is begun again. One that is to
    have more rounds, or to spend more, loses what was made at its end, and goes on to what it would
    have been from the start. ``say`` takes a sentence. Raises :class:`UserError` when ``out`` holds
    something else or what cannot go on; it is left as it is then.
    """
    stored = out / "config.yaml"
    done = checkpoint.last_round(out / "checkpoints")
    if not done and not (out / "folds").exists():
        _begin(out, config)
        return 0
    if not config["resume"]:
        raise UserError(
            f"{out} already holds a run; add resume=true to go on with it or choose another out=DIR"
        )
    if not (out / "cross_site.csv").exists():
        # A kill may have left a line half written, or one of a round that is repeated.
        keep_lines(out / "rounds.jsonl", lambda line: line["round"] <= done)
    if done and len(read_rounds(out)) == done and (why := untrained(out)):
        say(f"{out} is begun again: {why}")
        _unfinish(out)
        _begin(out, config)
        return 0
    earlier = read_config(stored)
    others = provenance.differing(out)
    if others:
        earlier = completed(earlier, config)
    longer = _is_longer(out, earlier, config)
    finished = (out / "cross_site.csv").exists() and not longer
    forced = config["resume"] == "force"
    if others and not forced and not finished:
        raise UserError(
            f"{out} holds a run that may not go on to the same numbers here: {others}; add "
            "resume=force to go on all the same, or choose another out=DIR"
        )
    if others and finished:
        say(f"{out} stands as it was made: {others}; a new out=DIR makes it anew")
    _sweep(out)
    if longer:
        done = _lengthen(out, earlier, config, done)
    if longer or (others and not finished):
        if others and done:
            checkpoint.adopt(out / "checkpoints", done, checkpoint.lineage(config))
        provenance.write(out, done, config["rounds"])
        write_yaml(stored, config)
    return done


def _begin(out: Path, config: Config) -> None:
    stored = out / "config.yaml"
    out.mkdir(parents=True, exist_ok=True)
    held = {path.name for path in out.iterdir() if path.suffix != ".tmp"} - {IDENTITY}
    if held and (stored.name not in held or held - _BEGUN):
        raise UserError(f"{out} is not empty and holds no run; choose another out=DIR")
    if held:
        read_config(stored)
    _sweep(out)
    for name in ("checkpoints", tracking.FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (provenance.NAME, "rounds.jsonl", "egress.jsonl"):
        (out / name).unlink(missing_ok=True)
    write_yaml(stored, config)
    provenance.write(out, 0, config["rounds"])


def _is_longer(out: Path, earlier: Config, config: Config) -> bool:
    """Whether ``config`` has more rounds, or spends more, than the run in ``out`` had or did.

    Raises :class:`UserError` when anything else differs, or when more rounds would have made the
    earlier ones other rounds.
    """
    before, after = checkpoint.deciding(earlier), checkpoint.deciding(config)
    changed = _differing(before, after)
    if others := sorted(changed.difference(checkpoint.EXTENDS)):
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(
            f"{out} holds a run with another config ({', '.join(others[:5])}{more}); repeat that "
            "run's options, of which only rounds and budget_limit may be raised, or choose another "
            "out=DIR"
        )
    for key in sorted(changed):
        if after[key] is None or before[key] is None or after[key] < before[key]:
            raise UserError(
                f"{out} holds a run of {key}={before[key]}, which can be raised and not lowered to "
                f"{after[key]}; choose another out=DIR"
            )
    if "rounds" in changed and (bound := _bound(earlier)):
        raise UserError(
            f"{out} holds a run of rounds={before['rounds']}, and {bound}: it cannot be made "
            "longer; choose another out=DIR"
        )
    if changed and (out / "evaluations").exists():
        raise UserError(
            f"{out / 'evaluations'} holds scores of the models as they are before the run is made "
            "longer; move that folder elsewhere first"
        )
    return bool(changed)


def _bound(config: Config) -> str:
    """What in the run of ``config`` depends on its number of rounds; empty if nothing does."""
    if bound := strategies.build(config["strategy"]).bound_to_rounds():
        return f"strategy={config['strategy']['name']} {bound}"
    if bound := METHODS.build(method_settings(config)).bound_to_rounds(config["rounds"]):
        return f"method={config['method']['name']} {bound}"
    return ""


def _lengthen(out: Path, earlier: Config, config: Config, done: int) -> int:
    """Undo what only the end of the shorter run did; return how many rounds still count.

    Killed at any moment, it is begun again by the same command.
    """
    checkpoints = out / "checkpoints"
    repeated = done > 0 and _ended_differently(earlier, done)
    if repeated and done > 1 and not (checkpoints / f"round_{done - 1:04d}.json").exists():
        raise UserError(
            f"{out} cannot be made longer: round {done} was its last one, which is repeated, and "
            f"the checkpoint of the round before is not kept (checkpoints_kept="
            f"{config['checkpoints_kept']}); choose another out=DIR"
        )
    _unfinish(out)
    if config["tracking"]:  # Sinks are fed anew, from the first round.
        shutil.rmtree(out / tracking.FOLDER, ignore_errors=True)
    if repeated:
        (checkpoints / f"round_{done:04d}.json").unlink()
        done -= 1
        if not done:
            _begin(out, config)
    return done


def _unfinish(out: Path) -> None:
    """Remove what was made when the rounds were done."""
    for name in _FINAL:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "figures", ignore_errors=True)


def _ended_differently(config: Config, done: int) -> bool:
    """Whether round ``done`` is not what it would be with more rounds after it: the last round is
    always validated, and says why a budget ended the run."""
    every = config["validate_every"]
    validated = done == config["rounds"] and every > 0 and done % every > 0
    return validated or config["budget"] != "steps"


def _sweep(out: Path) -> None:
    """Remove what a kill between writing and renaming left."""
    for leftover in out.rglob(".*.tmp"):
        if leftover.is_dir() and not leftover.is_symlink():
            raise UserError(f"{leftover} is a folder where a file was expected; remove it")
        leftover.unlink()


def _differing(first: Any, second: Any, prefix: str = "") -> set[str]:
    """The dotted keys whose values differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return set() if first == second else {prefix.removesuffix(".")}
    keys = first.keys() | second.keys()
    return set().union(
        *(_differing(first.get(key), second.get(key), f"{prefix}{key}.") for key in keys)
    )
