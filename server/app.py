"""Flower's ServerApp: trains, scores every model at every site, and writes the run folder."""

from __future__ import annotations

import json

from fedshift.protocol.flower import Context, Grid, ServerApp
from fedshift.protocol.storage import write_atomic
from fedshift.server import tables
from fedshift.server.cross_site import finished_models, measure_shift, score
from fedshift.server.progress import Progress
from fedshift.server.rounds import RunPlan, meet, messages_left, prepare, train

SPLITS = ("val", "test")
"""What is scored at the end; every summary is of the test split alone."""


def make_server_app(plan: RunPlan, progress: Progress) -> ServerApp:
    """The ServerApp of a run; the same for every engine."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan, progress)

    return app


def coordinate(grid: Grid, plan: RunPlan, progress: Progress) -> None:
    """Run what is left of a run. ``cross_site.csv`` is written last: with it the run is done."""
    sites = meet(grid, plan)
    training = prepare(sites, plan)
    models = finished_models(training, plan)
    exchanges = len(models) + 2  # every model is scored at every site; shift takes two
    progress.expect(messages_left(training, plan) + exchanges * len(sites.scored))
    train(training, plan, progress)

    instruction = training.instruction.but(round=plan.rounds)
    rows, problems = score(sites, instruction, models, SPLITS, progress)
    shift_rows, missing, advice = measure_shift(sites, instruction, models, progress)
    plan.after_round()
    tables.write_cases(plan.out / "cases.csv", rows)
    tables.write_shift(plan.out / "shift.csv", shift_rows)
    notes = {"problems": problems + missing, "advice": advice}
    write_atomic(plan.checkpoints / "evaluation.json", json.dumps(notes, indent=1) + "\n")
    tables.write_cross_site(plan.out / "cross_site.csv", tables.summarise(rows, plan.seed))
