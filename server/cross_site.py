"""After the last round: which model goes to which site, and the matrix that comes back.

Every site's own model, every site's personalised state where the strategy keeps one, the global
and the pooled model are scored at every site, the unseen ones included. One model is in memory at
a time. Then the sites' images are compared, from summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedshift.protocol.answers import (
    BLOCKWISE,
    Measured,
    Unfit,
    odd_ones,
    read_model,
    read_scores,
    read_shift_answer,
    read_summary,
)
from fedshift.protocol.flower import RecordDict
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.messages import (
    POOLED,
    Action,
    Arrays,
    Instruction,
    pack_arrays,
    pack_bank,
    unpack_arrays,
)
from fedshift.server import shift
from fedshift.server.federation import Sites, answered
from fedshift.server.pairs import Choice, Chosen, choose
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Progress
from fedshift.server.training import Arm, Training
from fedshift.strategies.base.aggregate import WeightedMean

Row = dict[str, Any]


class NoModel(Exception):
    """A model cannot be had; the message says why."""


@dataclass(frozen=True)
class ModelRef:
    """A finished model: its kind, what it was trained on, and how to get its tensors.

    ``load`` raises :class:`NoModel` when it cannot be had. ``parts`` are those it was taught, None
    for all: it is not scored on others. ``bank`` is what sites published to it, ``rules`` are those
    of its strategy, which may change what it is shown, and ``stage`` is the method's stage that
    predicts with it, empty for the finished method.
    """

    model: str
    trained_on: str
    load: Callable[[], Arrays]
    bank: Mapping[str, Arrays] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stage: str = ""
    parts: frozenset[str] | None = None


def finished_models(training: Training, plan: RunPlan) -> list[ModelRef]:
    """Every model of a finished run that ``plan.evaluated`` names, in the order of its rows; with
    the global model come the method's stages."""
    refs: list[ModelRef] = []
    for arm in training.arms:
        for ref in _arm_models(arm, training, plan):
            if ref.model in plan.evaluated:
                refs.append(ref)
                if ref.model == "global":
                    refs += [
                        replace(ref, model=stage, stage=stage) for stage in training.method.stages
                    ]
    order = ("local", *training.method.stages, "personal", "global", "pooled")
    return sorted(refs, key=lambda ref: (order.index(ref.model), ref.trained_on))


def _arm_models(arm: Arm, training: Training, plan: RunPlan) -> Iterator[ModelRef]:
    strategy, sites = arm.strategy, training.sites
    names, rules = list(strategy.sites), strategy.rules()
    absent = strategy.kept.difference(arm.model)
    """What is held by the sites alone."""

    def own(name: str) -> Arrays:
        """What site ``name`` keeps of this arm, with what the arm shares."""
        ask = training.instruction.but(action=Action.MODEL, round=training.done, arm=strategy.model)
        (_, reply), *_ = sites.ask([name], ask)
        wanted = {key for key, info in strategy.tensors.items() if info.sharing != "kept"}
        try:
            held = read_model(answered(reply), strategy.tensors, wanted.difference(arm.model))
        except Unfit as fault:
            raise NoModel(f"{strategy.model} model of {name}: {fault}") from fault
        return {**unpack_arrays(arm.model), **held}

    def mean_own() -> Arrays:
        """The shared tensors, and the mean over the sites of those they keep: what an unseen
        site can be given when no single model exists."""
        mean = WeightedMean()
        missing, heard = NoModel("no site trained"), False
        for name in names:
            try:
                held = own(name)
            except NoModel as reason:
                missing = reason
                continue
            heard = True  # Of what never leaves the sites nothing is in it.
            mean.add({key: array for key, array in held.items() if key in absent}, 1.0)
        if not heard:
            raise missing
        kept = mean.result()
        return {**unpack_arrays(arm.model), **kept}

    if not strategy.exchanges:
        for name in names:
            taught = frozenset(key for key, count in sites.cards[name].teaches.items() if count)
            yield ModelRef(strategy.model, name, partial(own, name), rules=rules, parts=taught)
        return
    if strategy.kept or strategy.personal:
        for name in names:
            yield ModelRef("personal", name, partial(own, name), strategy.bank, rules)
    if absent:
        yield ModelRef("global", POOLED, mean_own, strategy.bank, rules)
    else:
        yield ModelRef("global", POOLED, lambda: unpack_arrays(arm.model), strategy.bank, rules)


@dataclass
class Scores:
    """What models reach: a row a model, ``cases`` and part (the keys of ``cases.csv`` and the
    measures that are not listed there), ``wholes`` as :func:`fedshift.server.tables.summary.
    summarise` takes them, and a sentence for every model or site that could not be scored."""

    cases: list[Row] = field(default_factory=list)
    wholes: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def score(
    sites: Sites,
    instruction: Instruction,
    task: TaskCard,
    models: Sequence[ModelRef],
    splits: Sequence[str],
    progress: Progress,
) -> Scores:
    """Score every model at every site."""
    scores = Scores()
    for ref in models:
        ask = instruction.but(
            action=Action.SCORE, rules=ref.rules, splits=tuple(splits), stage=ref.stage
        )
        bank = pack_bank(ref.bank) if ref.bank else None
        try:
            packed = pack_arrays(ref.load())
        except NoModel as reason:
            scores.problems.append(str(reason))
            progress.say(f"not scored: {reason}")
            continue
        for name, reply in sites.ask(sites.scored, ask, packed, bank):
            progress.advance(f"scoring {ref.model} model of {ref.trained_on} at {name}")
            try:
                measured = read_scores(answered(reply), task, splits, sites.cards.get(name))
            except Unfit as reason:
                problem = f"{ref.model} model of {ref.trained_on} at {name}: {reason}"
                scores.problems.append(problem)
                progress.say(f"not scored: {problem}")
                continue
            cases, wholes = _rows(ref, name, measured)
            scores.cases += cases
            scores.wholes += wholes
    return scores


def _rows(ref: ModelRef, site: str, measured: Measured) -> tuple[list[Row], list[Row]]:
    """The rows of cases, and those of whole splits, of what the model was taught."""
    model = {"model": ref.model, "trained_on": ref.trained_on, "site": site}

    def taught(rows: list[Row]) -> list[Row]:
        return [
            {**model, **row}
            for row in rows
            if ref.parts is None or not row["part"] or row["part"] in ref.parts
        ]

    return taught(measured.cases), taught(measured.wholes)


@dataclass(frozen=True)
class Shift:
    """How far apart the sites' images are: the ``rows`` of ``shift.csv``, a sentence for everything
    missing from them, whose features were compared (``encoder``), and which pairs of sites."""

    rows: list[Row]
    missing: list[str]
    encoder: str
    chosen: Chosen


def measure_shift(
    sites: Sites,
    instruction: Instruction,
    models: Sequence[ModelRef],
    progress: Progress,
    choice: Choice = "auto",
) -> Shift:
    """Measure it in the features of one fixed encoder: the global model's or, without one, the
    pooled or the first site's; ``choice`` says between which pairs of sites."""
    problems: list[str] = []
    order = ("global", "pooled", "local", "personal")
    finished = [ref for ref in models if not ref.stage]
    for ref in sorted(finished, key=lambda ref: order.index(ref.model)):
        try:
            packed = pack_arrays(ref.load())
            break
        except NoModel:
            continue
    else:
        missing = ["domain shift: no model was trained whose features could be compared"]
        return Shift([], missing, "", Chosen("all", (), 0))

    def gather(
        action: Action,
        names: list[str],
        read: Callable[[str, RecordDict], Arrays],
        questions: dict[str, Any] | None = None,
    ) -> dict[str, Arrays]:
        found = {}
        replies = sites.ask(names, instruction.but(action=action), packed, questions=questions)
        for name, reply in replies:
            progress.advance(f"comparing images: {name}")
            try:
                found[name] = read(name, answered(reply))
            except Unfit as fault:
                problems.append(f"image statistics of {name}: {fault}")
        return found

    statistics = gather(
        Action.STATISTICS,
        sites.scored,
        lambda name, content: read_summary(content, sites.cards[name]),
    )
    for name, how in odd_ones(statistics, BLOCKWISE).items():
        problems.append(f"image statistics of {name}: {how}")
        del statistics[name]
    for name, how in shift.odd_scales(statistics).items():
        problems.append(f"image statistics of {name}: {how}")
    chosen = choose(statistics, choice, instruction.seed)
    if chosen.sentence:
        progress.say(chosen.sentence)
    questions = shift.questions(statistics, instruction.seed, chosen.pairs)
    answers = gather(
        Action.SHIFT_ANSWER,
        sorted(questions),
        lambda name, content: read_shift_answer(content, statistics[name], questions[name]),
        questions,
    )
    rows, missing = shift.pairwise(statistics, answers, instruction.seed, chosen.pairs)
    encoder = {"global": "the federated model", "pooled": "the pooled model"}.get(
        ref.model, f"the {ref.model} model of {ref.trained_on}"
    )
    return Shift(rows, problems + missing, encoder, chosen)
