"""Which device each worker computes on."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from fedshift import UserError

CONTEXT_BYTES = 600 * 2**20
"""What a process needs on a GPU before it holds any tensor."""


def place(
    devices: str,
    workers: int | None,
    sites: int,
    threads: int,
    need: Callable[[str], int],
    free: Callable[[str], int] | None = None,
) -> list[str]:
    """Return the device of each worker: several share a GPU as its memory allows.

    ``devices`` is ``auto`` (every GPU, or else the CPU) or a list such as ``cuda:0,cuda:1``;
    ``workers`` bounds their number (None: as many as are of use to ``sites`` sites).
    ``need(device)`` is what one site's training takes there and ``free(device)`` what is left
    there, in bytes. Raises :class:`UserError` for a device that this machine lacks.
    """
    names = device_names(devices)
    useful = useful_workers(workers, sites, threads)
    if names == ["cpu"]:
        return ["cpu"] * useful
    free = free or _free
    room = {
        name: useful if name == "cpu" else max(1, int(free(name) // (need(name) + CONTEXT_BYTES)))
        for name in names
    }
    slots: list[str] = []
    while len(slots) < useful and any(room.values()):
        for name in names:
            if room[name] > 0 and len(slots) < useful:
                room[name] -= 1
                slots.append(name)
    return slots


def useful_workers(workers: int | None, sites: int, threads: int) -> int:
    """``workers``, or as many as there are cores, but never more than sites."""
    cores = len(os.sched_getaffinity(0))
    return min(sites, workers or max(1, cores // threads))


def device_names(devices: str) -> list[str]:
    """The devices that ``auto`` or a list such as ``cuda:0,cuda:1`` names, in order.

    Raises :class:`UserError` for a device that this machine lacks.
    """
    count = torch.cuda.device_count()
    if devices == "auto":
        return [f"cuda:{index}" for index in range(count)] or ["cpu"]
    known = ["cpu", *(f"cuda:{index}" for index in range(count))]
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"engine.devices holds '{name}'; this machine has {', '.join(known)}")
    return names


def _free(device: str) -> int:
    # Nine tenths: the allocator fragments, and others may use the card too.
    return int(0.9 * torch.cuda.mem_get_info(device)[0])
