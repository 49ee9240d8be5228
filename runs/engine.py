"""The engine that a config asks for, on this machine."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from fedshift.client.app import make_client_app
from fedshift.client.memory import training_bytes
from fedshift.client.simulation import LocalSites
from fedshift.protocol.flower import Context, RecordDict
from fedshift.protocol.messages import Instruction
from fedshift.runs.plugins import check_one_process, rules_of
from fedshift.runs.settings import EngineSettings
from fedshift.server.app import make_server_app
from fedshift.server.engines import devices, ray
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Progress


def run_engine(
    plan: RunPlan, sites: LocalSites, engine: EngineSettings, progress: Progress
) -> None:
    """Run the plan's ServerApp against the sites in the engine asked for."""
    server = make_server_app(plan, progress)
    rules = rules_of(plan.strategies)
    if engine.name == "ray":
        _check_registered(plan.instruction, rules)
        client = make_client_app(sites, engine.threads)
        workers = devices.useful_workers(engine.most_workers, len(sites.names), engine.threads)
        ray.run(server, client, len(sites.names), workers, engine.threads, engine.address)
        return
    with inline_grid(sites, engine, plan.instruction, rules) as grid:
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        server(grid, context)


def inline_grid(
    sites: LocalSites, engine: EngineSettings, instruction: Instruction, rules: Collection[str]
) -> InlineGrid:
    """The inline engine with a worker for each place that the machine has; ``rules`` are the local
    ones that it is asked for."""
    slots = devices.place(
        engine.devices,
        engine.most_workers,
        len(sites.names),
        engine.threads,
        need=partial(
            training_bytes,
            {**instruction.method, **sites.own},
            instruction.task,
            instruction.rounds,
            sites.data.size,
        ),
    )
    if len(slots) > 1:
        _check_registered(instruction, rules)
    return InlineGrid(sites, slots, engine.threads)


def _check_registered(instruction: Instruction, rules: Collection[str]) -> None:
    named = [("method", instruction.method["name"]), ("task", instruction.task["name"])]
    named += [("rule", name) for name in sorted(rules)]
    check_one_process(named, "add engine.workers=1")
