"""One round of aggregation: 32 replies of a model of 30 million parameters, against Flower's own.

Run with ``python benchmarks/aggregation.py``; memory and the temporary folder must each hold 5 GB.
Both sides get the same list of replies, made before the clock starts. Each measurement is a process
of its own, which has combined two replies before: a coordinator runs many rounds, and memory that
the process holds already costs less than new memory. Memory is the peak of what Python allocates
(``tracemalloc``) in a second, untimed run, in which our strategies get their replies as a stream,
as in use: replies are counted as long as they are held; the model that was sent is not, nor are the
numbers that the replies are copied from. Medians of three turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from common import print_table, verdict, verdict_at_least

from fedshift import strategies
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import (
    ArrayRecord,
    ConfigRecord,
    Message,
    RecordDict,
    identify_server,
)
from fedshift.protocol.messages import Action, Instruction, TensorInfo

SITES = 32
TURNS = 3
ROUND = 1


SHAPES = {f"net/{layer}": (512, 512, 3, 3) for layer in range(13)}
"""31 million weights in convolutions of equal size."""
MODEL_BYTES = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
NUMBERS = np.random.default_rng(0).random(3_000_000, np.float32)


def model(seed: int) -> ArrayRecord:
    """Random weights, of which every seed and tensor has a window of its own."""
    found = ArrayRecord()
    for layer, (name, shape) in enumerate(SHAPES.items()):
        first = 1_000 * seed + layer
        window = NUMBERS[first : first + int(np.prod(shape))].reshape(shape)
        found.update(protocol.pack_arrays({name: window}))
    return found


def reply(site: int) -> Message:
    """What a site sends, for both sides alike."""
    content = protocol.answer(
        f"s{site:02d}",
        arrays=model(site),
        metrics={protocol.EXAMPLES: site + 1},
        details={"trained": {"net": site + 1}},
    )
    asked = Message(RecordDict(), dst_node_id=site + 10, message_type="train")
    return Message(content, reply_to=asked)


def replies() -> Iterator[Message]:
    """The replies one at a time, in the order of the sites' names."""
    for site in range(SITES):
        yield reply(site)  # Not named here: it is gone when the strategy drops it.


def ours(name: str, received: Iterable[Message]) -> float:
    """Seconds of a round of the strategy ``name``."""
    tensors = {
        tensor: TensorInfo("net", "weight", "averaged", shape, "float32")
        for tensor, shape in SHAPES.items()
    }
    strategy = strategies.build({"name": name})
    sites = {f"s{site:02d}": site + 10 for site in range(SITES)}
    strategy.begin(sites, tensors, Instruction(action=Action.NAME, seed=0, steps=1))
    list(strategy.configure_train(ROUND, model(99), ConfigRecord(), None))  # type: ignore[arg-type]
    tracemalloc.reset_peak()
    start = time.perf_counter()
    found, _ = strategy.aggregate_train(ROUND, received)
    assert found is not None and len(found) == len(SHAPES)
    return time.perf_counter() - start


def flowers(name: str, received: Iterable[Message]) -> float:
    """Seconds of a round of Flower's strategy ``name``."""
    from flwr.serverapp import strategy as flower

    strategy = getattr(flower, name)()
    start = time.perf_counter()
    found, _ = strategy.aggregate_train(ROUND, received)
    assert found is not None and len(found) == len(SHAPES)
    return time.perf_counter() - start


def measure(side: str, name: str, what: str) -> float:
    """The seconds, or the peak in models, of one round in a process of its own."""
    command = [sys.executable, __file__, side, name, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(side: str, name: str, what: str) -> float:
    """What :func:`measure` asks for."""
    identify_server(1)
    run = ours if side == "ours" else flowers
    if what == "seconds":
        run(name, list(islice(replies(), 2)))
        return run(name, list(replies()))
    tracemalloc.start()
    sent = MODEL_BYTES if side == "ours" else 0
    run(name, replies() if side == "ours" else list(replies()))
    return (tracemalloc.get_traced_memory()[1] - sent) / MODEL_BYTES


def main() -> int:
    """Print the table; return 1 when a target is missed."""
    print(f"{SITES} replies of {MODEL_BYTES / 4e6:.1f} million parameters\n")
    pairs = {"fedavg": "FedAvg", "median": "FedMedian"}
    seconds: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for mine, flower in pairs.items():
            seconds.setdefault(mine, []).append(measure("ours", mine, "seconds"))
            seconds.setdefault(flower, []).append(measure("flower", flower, "seconds"))
    for other in ("multi_krum", "bulyan", "geometric_median", "norm_clipping"):
        seconds[other] = [measure("ours", other, "seconds")]
    peaks = {
        name: measure("flower" if name in pairs.values() else "ours", name, "peak")
        for name in seconds
    }
    print_table(
        ["strategy", "seconds", "peak, models"],
        [
            (name, f"{statistics.median(found):.1f}", f"{peaks[name]:.2f}")
            for name, found in seconds.items()
        ],
    )
    print()
    met = [
        verdict_at_least(
            f"Flower's {flower} / {mine}",
            statistics.median(seconds[flower]) / statistics.median(seconds[mine]),
            1.0,
        )
        for mine, flower in pairs.items()
    ]
    met.append(verdict("peak of fedavg", peaks["fedavg"], 3.05, " models"))
    met.append(verdict("peak of median", peaks["median"], 2.0, " models"))
    return int(not all(met))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(child(*sys.argv[1:])))
    else:
        sys.exit(main())
