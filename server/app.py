"""Flower's ServerApp: trains, scores every model at every site, and writes the run folder."""

from __future__ import annotations

import json

from fedshift import UserError
from fedshift.protocol.flower import Context, Grid, ServerApp
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import some
from fedshift.server import tracking
from fedshift.server.cross_site import finished_models, measure_shift, score
from fedshift.server.federation import Sites, meet
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Progress
from fedshift.server.record import read_rounds, untrained
from fedshift.server.rounds import messages_left, train
from fedshift.server.tables.files import write_cases, write_cross_site, write_shift
from fedshift.server.tables.summary import summarise
from fedshift.server.training import prepare

SPLITS = ("val", "test")
"""What is scored at the end; every summary is of the test split alone."""
NOTES_TOLD = 8
"""As many notes of sites are told before training; the report has all."""


def make_server_app(plan: RunPlan, progress: Progress) -> ServerApp:
    """The ServerApp of a run; the same for every engine."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan, progress)

    return app


def coordinate(grid: Grid, plan: RunPlan, progress: Progress) -> None:
    """Run what is left of a run. ``cross_site.csv`` is written last: with it the run is done.

    Raises :class:`UserError` when no site trained in any round, or no model could be scored
    anywhere: the run is then not done, and there is nothing to conclude from it.
    """
    sites = meet(grid, plan)
    training = prepare(sites, plan)
    for problem in sites.problems:
        progress.say(problem)
    if not training.done:
        _tell_notes(sites, progress)
    models = finished_models(training, plan)
    exchanges = len(models) + 2  # every model is scored at every site; shift takes two
    progress.expect(messages_left(training, plan) + exchanges * len(sites.scored))
    train(training, plan, progress)
    if why := untrained(plan.out):
        raise UserError(
            f"method={plan.method['name']} with strategy={plan.strategies[0].name}: {why}; mend "
            "that, and run it anew with resume=true"
        )

    instruction = training.instruction.but(round=training.done)
    task = training.method.task
    scores = score(sites, instruction, task, models, SPLITS, progress)
    if scores.problems and not scores.cases and not scores.wholes:
        raise UserError(
            f"nothing could be scored: {scores.problems[0]}; mend that, and go on with resume=true"
        )
    shift = measure_shift(sites, instruction, models, progress, plan.shift_pairs)
    plan.after_round()
    tracking.write_table(plan.out / "rounds.csv", read_rounds(plan.out), plan.strategies[0].model)
    write_cases(plan.out / "cases.csv", scores.cases, task)
    write_shift(plan.out / "shift.csv", shift.rows)
    notes = {
        "problems": sites.problems + scores.problems + shift.missing,
        "encoder": shift.encoder,
        "shift_pairs": {"how": shift.chosen.how, "told": shift.chosen.sentence},
    }
    write_atomic(plan.checkpoints / "evaluation.json", json.dumps(notes, indent=1) + "\n")
    summary = summarise(scores.cases, task, plan.seed, scores.wholes)
    write_cross_site(plan.out / "cross_site.csv", summary, task)


def _tell_notes(sites: Sites, progress: Progress) -> None:
    """What sites say of their data, such as labels that the grid cuts off: known only afterwards,
    it would cost the run."""
    told: dict[str, list[str]] = {}
    for name, card in sites.cards.items():
        for note in card.notes:
            told.setdefault(note, []).append(name)
    # What one site alone says weighs more than what all say.
    ordered = sorted(told, key=lambda note: len(told[note]))
    for note in ordered[:NOTES_TOLD]:
        progress.say(f"{some(told[note])}: {note}")
    if len(ordered) > NOTES_TOLD:
        progress.say(f"and {len(ordered) - NOTES_TOLD} more notes of sites, all in the report")
