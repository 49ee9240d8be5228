"""How this process's allocator (glibc's) keeps memory; elsewhere nothing is changed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of ``mallopt(3)``."""


def keep_freed() -> None:
    """Let this process keep up to 64 MiB that it freed, for its next training step.

    By default glibc hands a step's activations back to the system as they are freed and takes them
    page by page in the next step, which is near a tenth of a step's time on a CPU.
    """
    # The most that glibc itself would come to, and both, since one of them set fixes the other at
    # a start of 128 KiB.
    _set(_M_TRIM_THRESHOLD, 64 * 2**20)
    _set(_M_MMAP_THRESHOLD, 32 * 2**20)


def few_arenas() -> None:
    """Let the threads of this process share two heaps, as ``MALLOC_ARENA_MAX=2`` does: with one of
    its own each, a process that waits in many threads keeps what each of them freed."""
    _set(_M_ARENA_MAX, 2)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
