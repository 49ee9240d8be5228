"""Run a site: the parent in this process, the child with torch in one of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fedshift import UserError
from fedshift.client.agent.agent import Agent
from fedshift.client.agent.child import Child
from fedshift.client.agent.connection import Address, Signer, connect
from fedshift.client.agent.frames import Outbox
from fedshift.client.agent.options import SiteOptions
from fedshift.client.agent.status import StatusFile
from fedshift.protocol.lock import alone_in
from fedshift.protocol.logs import logged_to


def run_site(
    options: SiteOptions, address: Address, state: Path, tell: Callable[[str], None]
) -> None:
    """Serve the coordinator until SIGTERM or Ctrl-C; what is in work is finished first.

    Raises :class:`UserError` when a file is unusable, another agent uses ``state``, or the
    coordinator turns the site away.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    signer = Signer(address.key)
    busy = f"another agent uses {state}; one serves a site, stop it or name another --state"
    with alone_in(state, busy) as lock, logged_to(state / "agent.log"):
        child = Child(
            [
                sys.executable,
                "-m",
                "fedshift.client.agent.worker",
                json.dumps({"state": str(state), **vars(options)}, default=dict),
            ],
            {**os.environ, "OMP_NUM_THREADS": str(options.threads)},
            (lock,),
        )
        agent = Agent(
            connect(address, signer),
            signer.public,
            Outbox(state / "outbox"),
            child,
            most_bytes=float(options.policy["max_message_mb"]) * 1e6,
            tell=StatusFile(state).write,
        )

        def end(number: int, frame: FrameType | None) -> None:
            if agent.status.state == "draining":
                raise UserError("ended at once; the message in work is done again")
            tell("finishing what is in work; once more to end at once")
            agent.drain()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            tell(f"site {options.name} serves {address.server}; its log is {state / 'agent.log'}")
            agent.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
