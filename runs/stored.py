"""A finished run, opened again: its config and its models, without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedshift import UserError, strategies
from fedshift.client.methods import METHODS
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.client.tasks import TASKS
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.messages import POOLED, Action, Instruction, Purpose
from fedshift.protocol.storage import check_links, read_yaml
from fedshift.runs import earlier, provenance
from fedshift.runs.config import Config
from fedshift.runs.federation import data_settings, task_settings
from fedshift.runs.plugins import AUGMENTATION, rules_of, told_settings
from fedshift.runs.settings import EngineSettings, RunSettings
from fedshift.server import checkpoint
from fedshift.server.cross_site import ModelRef, finished_models
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.federation import meet
from fedshift.server.plan import ResourceBudget, RunPlan
from fedshift.server.record import read_cards, read_rounds, untrained
from fedshift.server.training import prepare
from fedshift.sites.types import Federation, SiteSpec
from fedshift.strategies.base.clock import Clock


@dataclass(frozen=True)
class StoredRun:
    """A run folder's config, what it measures, its models (loaded one at a time), and what to ask
    of sites."""

    config: Config
    cards: list[SiteCard]
    task: TaskCard
    models: list[ModelRef]
    instruction: Instruction


_NEEDED = {
    "federation": {"kind", "name"},
    "data": {"cache", "split"},
    "task": {"name"},
    "method": {"name"},
    "strategy": {"name"},
    "policy": {"release"},
    "engine": {"threads", "amp"},
}
"""What no run's configuration lacks: the groups, and some of each one's keys."""


def read_config(path: Path) -> Config:
    """Read a run's ``config.yaml``; raises :class:`UserError` when it is not one, or not whole."""
    config = read_yaml(path)
    for group, keys in _NEEDED.items():
        node = config.get(group)
        if not isinstance(node, dict) or not keys <= node.keys():
            raise UserError(
                f"{path} is not the whole configuration of a run ({group} is missing or cut "
                "short); name the folder of a run, or restore that file from a copy"
            )
    for key in ("seed", "rounds", "protocol", "validate_every", "budget", "baselines"):
        if key not in config:
            raise UserError(
                f"{path} is not the whole configuration of a run ({key} is missing); name the "
                "folder of a run, or restore that file from a copy"
            )
    try:
        RunSettings.from_config(config)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; restore it from a copy") from error
    return config


def check_training(config: Config, structures: tuple[str, ...]) -> None:
    """Raise :class:`UserError` for wrong settings of the method (but for those that are each site's
    own) or the task, and for what the one cannot do of the other; no image is needed."""
    METHODS.named(config["method"]["name"]).check_serves(TASKS.named(config["task"]["name"]))
    method = METHODS.build(told_settings(config))
    task = TASKS.build(task_settings(config, structures))
    mirrors = getattr(getattr(method, AUGMENTATION, None), "flip", False)
    if mirrors and (why := task.unmirrored()):
        raise UserError(why)


def build_plan(out: Path, config: Config, structures: tuple[str, ...], identity: str) -> RunPlan:
    """What the coordinator needs to know of the run that ``config`` describes.

    Raises :class:`UserError` for wrong settings, for a method that does not serve the task, and for
    a strategy whose local rules are not known."""
    settings = RunSettings.from_config(config)
    check_training(config, structures)
    asked = config["strategy"]
    baselines = [name for name in settings.baselines if name != asked["name"]]
    arms = [asked, *({"name": name} for name in baselines)]
    built = tuple(strategies.build(arm) for arm in arms)
    rules_of(built)
    clock = Clock.from_config(config.get("clock", {"name": "none"}), settings.seed)
    return RunPlan(
        out=out,
        identity=identity,
        seed=settings.seed,
        rounds=settings.rounds,
        local_steps=settings.local_steps,
        method=told_settings(config),
        task=task_settings(config, structures),
        strategies=built,
        # Without a validation split no site could answer.
        validate_every=settings.validate_every if config["data"]["split"]["val"] else 0,
        checkpoints_kept=settings.checkpoints_kept,
        evaluated=settings.evaluated,
        shift_pairs=settings.shift.pairs,
        deadline_s=settings.deadline_s,
        budget=_budget(settings, clock),
        clock=clock,
        tracking=settings.tracking,
        told=_told(config),
    )


def _told(config: Config) -> tuple[Action, ...]:
    """What the sites told of their files before the run was planned."""
    told = [Action.SUMMARY] if config["data"].get("planned") else []
    if config["federation"]["kind"] != "phantom" and (
        Policy.from_config(config["policy"]).releases(Purpose.HASHES)
    ):
        told.append(Action.HASHES)
    return tuple(told)


def _budget(settings: RunSettings, clock: Clock | None) -> ResourceBudget | None:
    """What ends the run early, if anything; raises :class:`UserError` for half of a budget, or time
    without a clock."""
    if settings.budget == "time" and clock is None:
        raise UserError(
            "budget=time is simulated time, and there is no clock; add clock=hospitals or clock=lan"
        )
    if settings.budget == "steps":
        if settings.budget_limit is not None:
            raise UserError("budget_limit limits budget=bytes or budget=time; add one of them")
        return None
    if settings.budget_limit is None:
        unit = "bytes" if settings.budget == "bytes" else "seconds of the simulated clock"
        raise UserError(f"budget={settings.budget} needs budget_limit, in {unit}")
    return ResourceBudget(settings.budget, settings.budget_limit)


@contextmanager
def stored_run(run: Path) -> Iterator[StoredRun]:
    """Open a run whose rounds are done; no image is read, and nothing that its config names
    outside of ``run``.

    Raises :class:`UserError` when ``run`` is no run folder, its training is not finished or trained
    nothing, and when it holds the runs of a protocol that leaves something out in turn.
    """
    check_links(run)
    config = read_config(run / "config.yaml")
    if folds := sorted(run.glob("folds/*")):
        raise UserError(
            f"{run} holds a run for each thing left out in turn and no models of its own; name one "
            f"of them, such as {folds[0]}"
        )
    settings = RunSettings.from_config(config)
    earlier.complete(run)
    done = checkpoint.last_round(run / "checkpoints")
    lines = read_rounds(run)
    ended = bool(lines) and lines[-1].get("ended") is not None
    cards = read_cards(run / "checkpoints" / "sites.json")
    if (done < settings.rounds and not ended) or cards is None:
        raise UserError(
            f"{run} holds {done} of {settings.rounds} rounds; finish it first with "
            "fedshift simulate ... resume=true"
        )
    if why := untrained(run):
        raise UserError(f"{run} has no trained model: {why}; run it anew with resume=true")
    structures = cards[0].parts
    specs = tuple(
        SiteSpec(card.name, (), "train" if card.role == "train" else "unseen")
        for card in cards
        if card.name != POOLED
    )
    # Before there was a run.json, checkpoints were known by the whole configuration.
    identity = checkpoint.lineage if provenance.read(run) else checkpoint.fingerprint
    plan = build_plan(run, config, structures, identity(config))
    sites = LocalSites(
        federation=Federation(config["federation"]["name"], specs, structures),
        data=data_settings(config),
        policy=Policy.from_config(config["policy"]),
        folder=run / "checkpoints" / "sites",
        seed=settings.seed,
        pooled=any(card.name == POOLED for card in cards),
        audited=False,
    )
    threads = EngineSettings.from_config(config).threads
    with InlineGrid(sites, ["cpu"], threads) as grid:
        training = prepare(meet(grid, plan), plan)
        yield StoredRun(
            config,
            cards,
            training.method.task,
            finished_models(training, plan),
            training.instruction.but(round=training.done),
        )
