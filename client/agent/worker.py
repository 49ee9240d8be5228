"""The child's program: ``python -m fedshift.client.agent.worker SETTINGS DESCRIPTOR``."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import torch

from fedshift.client.agent import child
from fedshift.client.agent.site import Site
from fedshift.client.policy import Policy
from fedshift.protocol.allocator import few_arenas, keep_freed
from fedshift.protocol.logs import logged_to


def main() -> None:
    """Answer the parent's messages until it closes the channel."""
    settings = json.loads(sys.argv[1])
    state = Path(settings["state"])
    few_arenas()
    keep_freed()
    device = settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    site = Site(
        settings["name"],
        settings["data"],
        Policy.from_config(settings["policy"]),
        state,
        device=torch.device(device),
        own=settings["own"],
        amp=settings["amp"],
        threads=settings["threads"],
    )
    with logged_to(state / "worker.log"), socket.socket(fileno=int(sys.argv[2])) as channel:
        child.serve(channel, site.handle)


if __name__ == "__main__":
    main()
