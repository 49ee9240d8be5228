"""The site's guard: every message, in every engine, goes through ``SiteWorker.handle``.

It is the only code that touches images. It checks the site's policy, runs the method, writes
everything that leaves into the ledger, and answers. What goes wrong becomes an error answer that
names the site, never an exception: one site never takes the federation down.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from fedshift import Tellable, UserError, derive_seed
from fedshift.client import planning, rules, summaries
from fedshift.client.contract.method import Budget, Scene, StatisticsBank, of_method
from fedshift.client.contract.task import Predict, Task
from fedshift.client.ledger import Ledger, largest_of, right_to, size_of
from fedshift.client.limits import limited
from fedshift.client.methods import METHODS
from fedshift.client.model import Model, initial_arrays, shared_model
from fedshift.client.policy import UNMODELLED, Policy, Refused, kind_of
from fedshift.client.pseudonyms import Pseudonyms
from fedshift.client.questions import Questions
from fedshift.client.rules.base import Visit, run_rules
from fedshift.client.rules.base.following import following
from fedshift.client.scores import rounded, site_means
from fedshift.client.slices import fewest_subjects
from fedshift.client.state import SiteState
from fedshift.client.tasks import TASKS
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from fedshift.protocol.measures import Row
from fedshift.protocol.messages import (
    BANK,
    CONFIG,
    ERROR_FAILED,
    EXAMPLES,
    EXTRAS,
    STATISTICS,
    Action,
    Arrays,
    Instruction,
    Purpose,
    answer,
    pack_arrays,
    read_arrays,
    unpack_bank,
    view_array,
)
from fedshift.protocol.words import count
from fedshift.sites.facts import Surveyed
from fedshift.sites.types import SiteData, Split

log = logging.getLogger(__name__)

_STAYS = "stays"
"""Under what the names of the tensors that never leave are noted beside the tensors."""
_SENTENCES = (Refused, UserError)
"""Errors whose text is a sentence; others need their kind said."""


class Records(Protocol):
    """What a real site keeps of its runs, beside what the worker of each one keeps itself."""

    @property
    def ledger(self) -> Ledger:
        """Where what leaves is noted."""

    @property
    def pseudonyms(self) -> Pseudonyms:
        """The site's codes, the same in every run."""

    def admit(self, asked: Instruction) -> None:
        """Take a request in, or raise :class:`Refused` where its run is not welcome."""

    def trained(self, asked: Instruction, subjects: Collection[str]) -> None:
        """Note whose images a model was trained on, on disk before this returns."""


class SiteWorker:
    """Answers the coordinator's messages for one site."""

    def __init__(
        self,
        name: str,
        open_data: Callable[[], SiteData],
        *,
        look: Callable[[], Sequence[Surveyed]],
        policy: Policy,
        folder: Path,
        device: torch.device,
        own: Mapping[str, Any] | None = None,
        amp: bool = False,
        audited: bool = True,
        records: Records | None = None,
    ) -> None:
        """``look`` surveys the site's files. ``folder`` holds the site's state and ledger. ``own``
        are the method's settings that no message brings, such as a file of weights
        (:attr:`~fedshift.client.contract.method.Method.own`).
        ``audited=False`` is for the simulated site that pools all data: it stands for no place, so
        nothing can leave it. ``records`` are what a real site keeps over all of its runs."""
        self.name = name
        self.policy = policy
        self.folder = folder
        self.device = device
        self.amp = amp
        self._open_data = open_data
        self._look = look
        self._own = dict(own or {})
        self._records = records
        self._ledger: Ledger | None = None
        if records is not None:
            self._ledger, self._pseudonyms = records.ledger, records.pseudonyms
        else:
            self._ledger = Ledger(folder / "egress.jsonl", name) if audited else None
            self._pseudonyms = Pseudonyms(folder)
        self._questions = Questions(folder / "questions.jsonl")
        self._actions: dict[
            Action, tuple[Purpose, Callable[[Instruction, RecordDict], RecordDict]]
        ] = {
            Action.NAME: (Purpose.NAME, self._name),
            Action.SUMMARY: (Purpose.SUMMARY, self._summary),
            Action.HASHES: (Purpose.HASHES, self._hashes),
            Action.CARD: (Purpose.CARD, self._card),
            Action.INITIAL: (Purpose.INITIAL, self._initial),
            Action.FIT: (Purpose.UPDATE, self._fit),
            Action.VALIDATE: (Purpose.VALIDATION, self._validate),
            Action.SCORE: (Purpose.CASES, self._score),
            Action.MODEL: (Purpose.MODEL, self._kept_model),
            Action.STATISTICS: (Purpose.STATISTICS, self._statistics),
            Action.SHIFT_ANSWER: (Purpose.STATISTICS, self._shift_answer),
        }

    @cached_property
    def data(self) -> SiteData:
        """The site's data, opened at the first message that needs it."""
        return self._open_data()

    def reopen(self) -> None:
        """Open the data anew at the next message that needs it."""
        self.__dict__.pop("data", None)

    def handle(self, message: Message) -> Message:
        """Answer ``message``; an error answer carries one sentence of what went wrong."""
        asked: Instruction | None = None
        try:
            asked = _instruction(message)
            purpose, answered = self._actions[asked.action]
            if self._records is not None:
                self._records.admit(asked)
            self.policy.check(asked, purpose)
            _check_arrays(message.content)
            self._check_asked(asked, message.content)
            with limited(self.policy):
                reply = answered(self._with_own(asked), message.content)
            for record in reply:
                self.policy.check_release(right_to(record, purpose))
            self.policy.check_size(size_of(reply), largest_of(reply))
            if self._ledger is not None:
                self._ledger.record(reply, action=asked.action, round=asked.round, purpose=purpose)
            return Message(content=reply, reply_to=message)
        except Refused as refusal:
            return self._error(refusal.code, refusal, message, asked)
        except UserError as error:
            return self._error(ERROR_FAILED, error, message, asked)
        except Exception as error:
            log.exception("site %s failed", self.name)
            return self._error(ERROR_FAILED, error, message, asked)

    def _check_asked(self, asked: Instruction, content: RecordDict) -> None:
        """Count what is asked of the images; raise :class:`Refused` when it is too much."""
        if self._ledger is None:
            return
        stages = 0
        if asked.action is Action.SCORE:
            stages = len(METHODS.named(str(asked.method.get("name", ""))).stages)
        most = self.policy.most_questions(asked.action, stages)
        if most is not None and not self._questions.ask(content, kind_of(asked), most):
            raise Refused(
                f"the site was asked for '{asked.action}' as often as a federation of "
                f"{self.policy.sites} sites needs, {most} times (policy.sites, policy.matrices)"
            )

    def _with_own(self, asked: Instruction) -> Instruction:
        """``asked`` with the method's settings that are the site's own: no message may set them."""
        if asked.action in UNMODELLED:
            return asked
        own = METHODS.named(str(asked.method.get("name", ""))).own
        if brought := sorted(own & asked.method.keys()):
            raise Refused(f"method.{brought[0]} is the site's own setting; no request may bring it")
        given = {name: value for name, value in self._own.items() if name in own}
        return asked.but(method={**asked.method, **given})

    def _error(
        self, code: int, error: Exception, message: Message, asked: Instruction | None
    ) -> Message:
        """An error answer: its text leaves the site too, and is in the ledger like all else."""
        reason = self._told(error)
        if self._ledger is not None:
            text = RecordDict({"error": ConfigRecord({"reason": reason})})
            action, number = (asked.action, asked.round) if asked is not None else (None, 0)
            try:
                self._ledger.record(text, action=action, round=number, purpose=Purpose.ERROR)
            except OSError:  # A full disk must not keep the site from saying so.
                log.exception("site %s cannot write its ledger", self.name)
        return Message(Error(code, reason), reply_to=message)

    def _told(self, error: Exception) -> str:
        """What is told of an error: all of it or, where the policy has it, nothing that may name a
        file, a subject or a host."""
        sentence = (
            str(error) if isinstance(error, _SENTENCES) else f"{type(error).__name__}: {error}"
        )
        if self.policy.texts == "full" or isinstance(error, Refused | Tellable):
            return sentence
        log.error("site %s: %s", self.name, sentence)
        if {_number(error), _number(error.__cause__)} & {errno.ENOSPC, errno.EDQUOT}:
            return "the site's disk is full"
        return f"the site cannot answer ({type(error).__name__}); its own log says why"

    def _name(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        return answer(self.name)

    def _summary(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """What the settings of the federation are chosen from."""
        found = planning.summary(self._look(), self.policy)
        if found is None:
            raise Refused(
                "the site has fewer images or subjects than its policy lets be summarised "
                "(policy.min_count, policy.min_subjects)"
            )
        return answer(self.name, details=found.to_json())

    def _hashes(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """Keyed perceptual hashes of the site's images, in the order of its table."""
        found = planning.hashes(self._look(), self.policy)
        if found is None:
            raise Refused("the site's policy does not release 'image hashes' (policy.release)")
        return answer(self.name, details={"hashes": found})

    def _card(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        card = describe(self.data, TASKS.build(instruction.task))
        return answer(self.name, details=card.to_json())

    def _initial(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        model = Model(instruction.method, instruction.task, torch.device("cpu"), instruction.seed)
        card = model.card(instruction.task["name"])
        return answer(self.name, arrays=pack_arrays(model.read()), details=card.to_json())

    def _check_subjects(self, model: Model, steps: int) -> None:
        """Raise :class:`Refused` where an update might tell of too few subjects: one of a single
        step on a single image is a picture of it."""
        labelled: Counter[str] = Counter()
        all_slices: Counter[str] = Counter()
        for case in self.data.splits["train"]:
            labelled[case.subject] += int(case.labelled.sum())
            all_slices[case.subject] += len(case.image)
        pools = [labelled] if labelled.total() else [all_slices]
        if model.method.participation != "labelled":
            pools.append(all_slices)
        drawn = model.method.drawn(steps)
        if any(fewest_subjects(pool, drawn) < self.policy.min_subjects for pool in pools):
            raise Refused(
                f"an update of {count(steps, 'step')} may be of fewer than the "
                f"{self.policy.min_subjects} subjects that the site's policy wants behind one "
                "(policy.min_subjects): it takes more steps, larger batches or more subjects"
            )

    def _fit(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        start = time.perf_counter()
        state = SiteState(self.folder, instruction.arm)
        kept = frozenset(instruction.kept)
        earlier, bank = instruction.round - 1, _bank(content)
        own = state.load(earlier)
        model = self._model(instruction, content, {name: own[name] for name in own if name in kept})
        if self.policy.min_subjects > 1:
            self._check_subjects(model, instruction.steps)
        budget = Budget(
            task=model.task,
            steps=instruction.steps,
            seed=derive_seed(
                instruction.seed, self.name, instruction.round, instruction.arm, "fit"
            ),
            device=self.device,
            amp=self.amp,
            round=instruction.round,
            rounds=instruction.rounds,
            memory=state.notes("method", earlier),
        )
        visit = Visit(
            instruction=instruction,
            site=self.data,
            model=model,
            device=self.device,
            extras=read_arrays(content, EXTRAS),
            bank=bank,
            memory=state.notes("rules", earlier),
            personal={name: own[name] for name in own if name not in kept},
        )
        fit = partial(model.fit, self.data, of_method(bank))
        model.forget_gradients()
        asked = rules.build(visit)
        report = run_rules(asked, following(asked, model, fit), budget)
        tensors = {**model.read(kept), **visit.personal}
        for name, array in tensors.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise Tellable(
                    f"training diverged in round {instruction.round}: {name}, which stays here, "
                    "is not finite; lower method.lr"
                )
        stays = model.kept().intersection(tensors)
        notes = {
            "method": budget.memory,
            "rules": visit.memory,
            # Whatever method a later question names, these stay.
            _STAYS: {name: np.zeros(0, np.uint8) for name in stays},
        }
        if report.trained and (tensors or any(notes.values())):
            state.save(instruction.round, tensors, notes)
        if self._records is not None:
            subjects = {case.subject for case in self.data.splits["train"]}
            self._records.trained(instruction, subjects)
        metrics: dict[str, float | int] = {
            EXAMPLES: max(report.trained.values(), default=0),
            **report.metrics,
            "seconds": time.perf_counter() - start,
        }
        published = report.statistics
        if published and (
            report.summarised < self.policy.min_count
            or not self.policy.releases(Purpose.STATISTICS)
        ):
            published = {}
            metrics["statistics_withheld"] = 1
        return answer(
            self.name,
            arrays=pack_arrays(model.update(report.trained, kept)),
            metrics=metrics,
            statistics=published,
            extras=visit.sent,
            details={"trained": report.trained, "domain": report.domain},
        )

    def _validate(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """The headline of the model that the site would use: its own, where it has one."""
        own = SiteState(self.folder, instruction.arm).load(instruction.round)
        model = self._model(instruction, content, own)
        cases = [case for case in self.data.splits["val"] if case.labelled.any()]
        metrics: dict[str, float | int] = {EXAMPLES: 0}
        if cases and len({case.subject for case in cases}) >= self.policy.min_subjects:
            predict = self._predict(model, instruction, content, *model.method.stages[:1])
            found = [model.task.validate(case, predict) for case in cases]
            metrics[EXAMPLES] = len(cases)
            mean = float(np.mean(found))
            # Validation is asked for in every round: where scores are coarse it is, too.
            coarse = self.policy.scores == "site"
            metrics[f"val_{model.task.measures[0].name}"] = rounded(mean) if coarse else mean
        return answer(self.name, metrics=metrics)

    def _predict(
        self, model: Model, instruction: Instruction, content: RecordDict, stage: str = ""
    ) -> Predict:
        seed = derive_seed(instruction.seed, "prediction")
        scene = Scene(model.task, self.name, self.device, seed, _bank(content), stage)
        return rules.predictor(model, scene, instruction.rules)

    def _score(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """What the task measures of the model sent, in each split that is asked for."""
        model = self._model(instruction, content)
        if instruction.stage not in ("", *model.method.stages):
            raise Refused("the method has no such stage")
        predict = self._predict(model, instruction, content, instruction.stage)
        measured = [measure.name for measure in model.task.measures if not measure.whole]
        rows: list[tuple[str, Row]] = []
        for split in instruction.splits:
            cases = [case for case in self.data.splits[cast(Split, split)] if case.labelled.any()]
            if cases:
                found = model.task.score(cases, predict, self.data.parts)
                rows += [(split, row) for row in found]
        if self.policy.scores == "site":
            means = site_means(rows, model.task.measures, self.policy.min_subjects)
            return answer(self.name, metrics={EXAMPLES: 0}, details={"means": means})
        wholes: list[list[Any]] = []
        for split, row in rows:
            if not row.case:
                ((name, value),) = row.values.items()
                interval = row.interval or (math.nan, math.nan)
                wholes.append([split, row.vendor, row.part, name, row.n, value, *interval])
        rows = [(split, row) for split, row in rows if row.case]
        keys = [[split, row.vendor, row.subject, row.case, row.part] for split, row in rows]
        if self.policy.pseudonyms and keys:
            for place in (2, 3):
                codes = self._pseudonyms.give([key[place] for key in keys])
                for key, code in zip(keys, codes, strict=True):
                    key[place] = code
        metrics: dict[str, Any] = {
            EXAMPLES: len(rows),
            "failed": [int(row.failed) for _, row in rows],
            **{name: [float(row.values[name]) for _, row in rows] for name in measured},
        }
        details = {"rows": keys, "wholes": wholes}
        return answer(self.name, metrics=metrics, details=details)

    def _kept_model(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        state = SiteState(self.folder, instruction.arm)
        tensors = state.load(instruction.round)
        if not tensors:
            raise Tellable(f"no {instruction.arm} model was ever trained here")
        if self._ledger is not None:
            stays = {
                *state.notes(_STAYS, instruction.round),
                *shared_model(instruction.method, instruction.task, self.device).kept(),
            }
            tensors = {name: array for name, array in tensors.items() if name not in stays}
        return answer(self.name, arrays=pack_arrays(tensors))

    def _statistics(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """What the site says of its images so that shift can be measured."""
        model = self._model(instruction, content)
        statistics = summaries.summarise(
            self.data,
            partial(model.method.features, model.nets),
            model.nets,
            model.task,
            seed=instruction.seed,
            device=self.device,
            min_count=self.policy.min_count,
            min_subjects=self.policy.min_subjects,
        )
        return answer(self.name, statistics=statistics)

    def _shift_answer(self, instruction: Instruction, content: RecordDict) -> RecordDict:
        """The second exchange about shift: the answer to the coordinator's question."""
        model = self._model(instruction, content)
        statistics = summaries.answer(
            self.data,
            partial(model.method.features, model.nets),
            model.nets,
            read_arrays(content, STATISTICS),
            seed=instruction.seed,
            device=self.device,
            min_count=self.policy.min_count,
            min_subjects=self.policy.min_subjects,
            most_projections=self.policy.most_projections,
        )
        return answer(self.name, statistics=statistics)

    def _model(
        self, instruction: Instruction, content: RecordDict, own: Arrays | None = None
    ) -> Model:
        """The networks with the weights sent and, in their place, those of the site's ``own``; a
        tensor that stays at the sites and is neither has the run's initial weights."""
        model = shared_model(instruction.method, instruction.task, self.device)
        if unknown := set(instruction.kept) - model.tensors().keys():
            raise ValueError(f"{len(unknown)} tensors that are to stay here are none of the model")
        arrays = {**read_arrays(content), **(own or {})}
        if missing := model.kept().union(instruction.kept).difference(arrays):
            initial = initial_arrays(instruction.method, instruction.task, instruction.seed)
            arrays.update({name: initial[name] for name in missing})
        model.load(arrays)
        return model


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error of files."""
    return error.errno if isinstance(error, OSError) else None


def _instruction(message: Message) -> Instruction:
    """What is asked; raises :class:`Refused` for what is no request."""
    try:
        return Instruction.from_record(message.content.get(CONFIG))
    except ValueError as error:
        raise Refused(str(error)) from error


def _check_arrays(content: RecordDict) -> None:
    """Raise :class:`Refused` for arrays that are not what they say they are, or not finite: trained
    from they would spoil what the site keeps."""
    for record in content.values():
        for array in record.values() if isinstance(record, ArrayRecord) else ():
            try:
                values = view_array(array)
            except (TypeError, ValueError) as error:
                raise Refused("an array of the request is not what it says it is") from error
            if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
                raise Refused("an array of the request is not finite")


def _bank(content: RecordDict) -> StatisticsBank:
    """What the sites published, as far as it was sent."""
    record = content.get(BANK)
    return unpack_bank(record) if isinstance(record, ArrayRecord) else {}


def describe(data: SiteData, task: Task) -> SiteCard:
    """The card of a site, whose labels are for ``task``: counts and names.

    Raises :class:`fedshift.UserError` where a setting of the task can mean nothing there."""
    cases = [case for split in data.splits.values() for case in split]
    shown: set[int] = set()
    teaches = dict.fromkeys(data.parts, 0)
    complete = True
    for case in data.splits["train"]:
        if case.labelled.any():
            shown |= task.shown(case)
            complete = complete and case.annotates is None and not case.ignores
            for index in case.annotates or range(1, len(data.parts) + 1):
                teaches[data.parts[index - 1]] += int(case.labelled.sum())
    return SiteCard(
        name=data.name,
        role=data.role,
        vendors=tuple(sorted({case.domain.vendor for case in cases})),
        parts=data.parts,
        labelled=tuple(data.parts[index - 1] for index in sorted(shown)),
        teaches=teaches,
        complete=complete,
        splits={split: data.counts(split) for split in data.splits},
        spacing_mm=tuple(sorted({case.native_spacing_mm for case in cases})),
        size=data.size,
        notes=(*data.notes, *task.remarks([case for case in cases if case.labelled.any()])),
        channels=data.channels,
    )
