"""Sites that answer without any data, and do what they are called."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.client.worker import SiteWorker
from fedshift.protocol.flower import ConfigRecord, Message, correct_source
from fedshift.protocol.messages import CONFIG, Instruction, answer
from fedshift.runs.config import load
from fedshift.sites import DataSettings, load_federation


class Scripted(SiteWorker):
    """Does in round 1 what its site is called: dies, raises an error, hangs for a while, or poses
    as the site at node 2."""

    def handle(self, message: Message) -> Message:
        record = message.content[CONFIG]
        assert isinstance(record, ConfigRecord)
        number = Instruction.from_record(record).round
        if self.name == "dies" and number == 1:
            os._exit(7)
        if self.name == "raises" and number == 1:
            raise RuntimeError("not caught at the site")
        if self.name == "poses" and number == 1:
            posing = Message(answer("a"), reply_to=message)
            correct_source(posing, 2)
            return posing
        if self.name == "hangs" and number == 1:
            time.sleep(1.2)
        with (self.folder.parent / "order.txt").open("a") as file:
            file.write(f"{self.name} {os.getpid()}\n")
        return Message(answer(self.name), reply_to=message)


@dataclass(frozen=True)
class ScriptedSites(LocalSites):
    """A federation of them."""

    def worker(self, name: str, device: torch.device) -> SiteWorker:
        return Scripted(
            name,
            None,  # type: ignore[arg-type]
            look=tuple,
            policy=self.policy,
            folder=self.folder / name,
            device=device,
        )


def scripted_sites(tiny: tuple[str, ...], folder: Path, *names: str) -> ScriptedSites:
    """Sites of these names under ``folder``."""
    config = load(list(tiny))
    data = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], data, 0)
    sites = tuple(replace(federation.sites[0], name=name) for name in names)
    return ScriptedSites(replace(federation, sites=sites), data, Policy(), folder, 0)
