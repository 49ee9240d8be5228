"""Flower's ClientApp: a thin relay to the site's worker, for engines that start client apps."""

from __future__ import annotations

from pathlib import Path

import torch

from fedshift.client.simulation import LocalSites, OpenSites
from fedshift.protocol.flower import ClientApp, Context, Message

_OPEN: dict[Path, OpenSites] = {}
"""By run folder: an engine may unpickle the app for every message, the open sites outlive it."""


def make_client_app(sites: LocalSites, threads: int) -> ClientApp:
    """A ClientApp whose node of partition ``i`` is the ``i``-th site of ``sites``."""
    app = ClientApp()

    def relay(message: Message, context: Context) -> Message:
        torch.set_num_threads(threads)
        if sites.folder not in _OPEN:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            _OPEN[sites.folder] = OpenSites(sites, device)
        name = sites.names[int(context.node_config["partition-id"])]
        return _OPEN[sites.folder][name].handle(message)

    for register in (app.train, app.evaluate, app.query):
        register()(relay)
    return app
