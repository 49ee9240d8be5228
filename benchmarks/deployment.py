"""What a deployment costs beside training: rounds of four sites that train nothing.

Run with ``python benchmarks/deployment.py [ROUNDS]`` (Linux), on a machine that does nothing else:
bytes are counted on the loopback interface. A coordinator and four agents, each a process with its
child, exchange a model of 64 tensors and 8.1 MB as FedAvg would: down, an update up, and in every
round the averaged model down once more to be validated. Weights are fresh random numbers in every
round, since equal chunks travel once. Both transports, TLS and signatures as deployed; nothing is
trained, so that a round is overhead alone.

The targets: a round (training and validation) takes at most 3 s over HTTPS and 2 s over gRPC; 0.6
CPU seconds a site and round; the wire carries at most 1.02 bytes a byte of arrays, and down at most
0.65 of what a simulation counts as sent, since an agent keeps the last model's chunks; at most 20
requests a site and message.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedshift.client.agent import child
from fedshift.client.agent.agent import Agent
from fedshift.client.agent.child import Child
from fedshift.client.agent.connection import Address, Signer, connect
from fedshift.client.agent.frames import Outbox
from fedshift.client.agent.keys import make_key
from fedshift.client.agent.status import StatusFile, read
from fedshift.protocol.flower import ArrayRecord, Message
from fedshift.protocol.messages import (
    Action,
    Instruction,
    answer,
    pack_arrays,
    read_arrays,
    request,
)
from fedshift.server.exchange import exchange
from fedshift.server.fleet import keys
from fedshift.server.fleet.grid import FleetGrid
from fedshift.server.fleet.grpc import GrpcServer
from fedshift.server.fleet.https import HttpsServer
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.service import Fleet

SITES = 4
TENSORS, SHAPE = 64, (31, 1024)
ROUNDS = 10
WARM_UP = 2


def weights(rng: np.random.Generator) -> ArrayRecord:
    """A model that no other is like."""
    return pack_arrays(
        {f"layer_{i:02d}/weight": rng.normal(size=SHAPE).astype(np.float32) for i in range(TENSORS)}
    )


def site(channel: int) -> None:
    """A child that answers with an update of the same size, or with a number."""
    import socket

    rng = np.random.default_rng(os.getpid())

    def handle(message: Message) -> Message:
        if message.metadata.message_type == "train":
            arrays = read_arrays(message.content)
            noise = np.float32(rng.normal())
            update = {name: array + noise for name, array in arrays.items()}
            content = answer("site", arrays=pack_arrays(update), metrics={"num-examples": 1})
        else:
            content = answer("site", metrics={"num-examples": 1, "val": 0.5})
        return Message(content=content, reply_to=message)

    child.serve(socket.socket(fileno=channel), handle)


def agent(told: dict[str, Any]) -> None:
    """The parent of one site."""
    folder = Path(told["folder"])
    address = Address(
        told["server"],
        folder / "site.key",
        folder.parent / "ca.crt",
        told["transport"],
        folder / "site.crt",
    )
    signer = Signer(address.key)
    worker = Child([sys.executable, __file__, "site"], os.environ)
    serving = Agent(
        connect(address, signer),
        signer.public,
        Outbox(folder / "outbox"),
        worker,
        tell=StatusFile(folder).write,
    )
    signal.signal(signal.SIGTERM, lambda *_: serving.drain())
    serving.run()


@contextmanager
def federation(transport: str, folder: Path) -> Iterator[tuple[Hub, FleetGrid, list[int]]]:
    """A coordinator in this process and its agents; yields the agents' process ids."""
    keys.make_authority(folder)
    keys.make_certificate(folder, ["127.0.0.1"])
    hub = Hub(lease_s=60)
    fleet = Fleet(hub)
    pair = {"certificate": folder / "server.crt", "key": folder / "server.key"}
    with ExitStack() as stack:
        server: HttpsServer | GrpcServer
        if transport == "https":
            server = stack.enter_context(HttpsServer(fleet, "127.0.0.1", 0, **pair))
        else:
            server = GrpcServer(fleet, "127.0.0.1", 0, **pair, authority=folder / "ca.crt")
            stack.enter_context(server)
        processes = []
        for number in range(SITES):
            place = folder / f"site_{number}"
            make_key(place / "site.key", place / "site.pub")
            public = keys.public_pem((place / "site.pub").read_bytes())
            hub.enrol(place.name, public)
            (place / "site.crt").write_bytes(keys.certify(folder, place.name, public))
            told = {
                "folder": str(place),
                "server": f"127.0.0.1:{server.port}",
                "transport": transport,
            }
            processes.append(
                subprocess.Popen([sys.executable, __file__, "agent", json.dumps(told)])
            )
        grid = stack.enter_context(FleetGrid(hub))
        while len(list(grid.get_node_ids())) < SITES:
            time.sleep(0.05)
        try:
            yield hub, grid, [process.pid for process in processes]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


def cpu_seconds(parents: Sequence[int]) -> float:
    """What this process and the agents with their children have used."""
    total = 0.0
    for pid in (os.getpid(), *parents):
        process = psutil.Process(pid)
        members = [process, *(process.children(recursive=True) if pid != os.getpid() else ())]
        for member in members:
            spent = member.cpu_times()
            total += spent.user + spent.system
    return total


def ask(grid: FleetGrid, action: Action, number: int, model: ArrayRecord) -> list[Message]:
    """Send a request with the model to every site; the replies."""
    content = request(Instruction(action, seed=0, round=number), model)
    messages = [
        Message(
            content=content,
            dst_node_id=node,
            message_type=action.message_type,
            group_id=str(number),
        )
        for node in sorted(grid.get_node_ids())
    ]
    replies = list(exchange(grid, messages, None))
    assert not any(reply.has_error() for reply in replies), replies
    return replies


def measure(transport: str, rounds: int) -> dict[str, float]:
    """The figures of one transport, medians over the rounds after a warm-up."""
    rng = np.random.default_rng(0)
    arrays = TENSORS * SHAPE[0] * SHAPE[1] * 4
    found: dict[str, list[float]] = {"wall": [], "cpu": [], "wire": [], "down": [], "requests": []}
    with (
        tempfile.TemporaryDirectory() as place,
        federation(transport, Path(place)) as (hub, grid, parents),
    ):
        model = weights(rng)
        states = [Path(place) / f"site_{number}" for number in range(SITES)]

        def requests() -> int:
            time.sleep(1.1)  # The status is written once a second.
            return sum(status.requests for s in states if (status := read(s)) is not None)

        for number in range(1, WARM_UP + rounds + 1):
            asked = requests()
            start, cpu = time.perf_counter(), cpu_seconds(parents)
            wire = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
            down = sum(peer.bytes_out for peer in hub.peers)
            ask(grid, Action.FIT, number, model)
            model = weights(rng)
            ask(grid, Action.VALIDATE, number, model)
            if number <= WARM_UP:
                continue
            found["wall"].append(time.perf_counter() - start)
            found["cpu"].append((cpu_seconds(parents) - cpu) / SITES)
            sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - wire
            down = sum(peer.bytes_out for peer in hub.peers) - down
            # Down once, since the chunks of the last model are kept, and up once.
            found["wire"].append(sent / (2 * SITES * arrays))
            found["down"].append(down / (2 * SITES * arrays))
            found["requests"].append((requests() - asked) / (2 * SITES))
    return {name: statistics.median(values) for name, values in found.items()}


def main(rounds: int) -> int:
    """Print both transports; return 1 when a target is missed."""
    from common import print_table, verdict  # torch and more, which no agent's parent imports

    results = {transport: measure(transport, rounds) for transport in ("https", "grpc")}
    print(f"{SITES} sites, {TENSORS} tensors of 8.1 MB, training and validation, {rounds} rounds\n")
    print_table(
        ["transport", "s a round", "CPU s a site", "wire", "down", "requests"],
        [(name, *(f"{value:.3f}" for value in found.values())) for name, found in results.items()],
    )
    print()
    met = [
        verdict(f"{name}: {what}", found[key], most)
        for name, found in results.items()
        for what, key, most in (
            ("seconds a round", "wall", 3.0 if name == "https" else 2.0),
            ("CPU seconds a site and round", "cpu", 0.6),
            ("bytes on the wire a byte of arrays", "wire", 1.02),
            ("bytes down a byte that a simulation counts", "down", 0.65),
            ("requests a site and message", "requests", 20.0),
        )
    ]
    return int(not all(met))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["agent", told]:
            agent(json.loads(told))
        case ["site", channel]:
            site(int(channel))
        case given:
            sys.exit(main(int(given[0]) if given else ROUNDS))
