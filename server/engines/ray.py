"""Flower's own simulation on Ray, for those who have a Ray cluster: the same apps, other wires.

Ray listens on all interfaces without authentication; it is never the default.
"""

from __future__ import annotations

import importlib.util
import time

import torch

from fedshift import UserError
from fedshift.protocol.flower import ClientApp, Context, Grid, ServerApp


def run(
    server: ServerApp,
    client: ClientApp,
    nodes: int,
    workers: int,
    threads: int,
    address: str | None = None,
) -> None:
    """Run ``server`` against ``nodes`` virtual nodes on ``workers`` actors that share the GPUs.

    With an ``address`` (``auto``, ``HOST:PORT``) they are actors of the Ray cluster there, as many
    as it has room for; each of its machines needs this fedshift, and the images at the same paths.

    Raises :class:`UserError` when Ray is not installed, or no cluster answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine=ray needs Ray; install it with `pip install fedshift[ray]`")
    from flwr.simulation import run_simulation

    if address is not None:
        _check_cluster(address)

    complete = ServerApp()

    @complete.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower starts the server while it still registers the nodes.
        while len(list(grid.get_node_ids())) < nodes:
            time.sleep(0.05)
        server(grid, context)

    gpus = torch.cuda.device_count()
    run_simulation(
        complete,
        client,
        num_supernodes=nodes,
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": gpus / workers},
            "init_args": {
                "log_to_driver": False,
                # What a cluster has it was told when it was started.
                **(
                    {"address": address}
                    if address is not None
                    else {
                        "num_cpus": workers * threads,
                        "num_gpus": gpus,
                        "include_dashboard": False,
                    }
                ),
            },
        },
    )


def _check_cluster(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at engine.address={address}; start one with `ray start "
            "--head`, or leave the address out for one of this machine alone"
        ) from error
    ray.shutdown()
