"""How long a site works on one request, and how much memory it takes for it."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from fedshift.client.policy import Policy, Refused

_LATE_IMPORT = "torch._dynamo"
"""What torch imports with the first optimiser: it is to count for no request, and what is ended in
the middle of its import could never be imported again."""
_AGAIN_S = 0.1


@contextmanager
def limited(policy: Policy) -> Iterator[None]:
    """Within it, work ends after the policy's ``max_seconds`` with :class:`Refused`, and fails as
    where a machine has no memory left when the process takes ``max_memory_mb`` more than it holds.

    The limits are the process's own: the time needs its main thread, the memory Linux, and neither
    is to be nested. Memory of a GPU is not counted.
    """

    def over(_: int, frame: FrameType | None) -> None:
        if _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        raise Refused(
            f"the site's policy gives a request {policy.max_seconds:g} s (policy.max_seconds)"
        )

    if policy.max_seconds is not None or policy.max_memory_mb is not None:
        import_module(_LATE_IMPORT)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = None
    try:
        if policy.max_memory_mb is not None:
            most = _held() + int(policy.max_memory_mb * 1e6)
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        if policy.max_seconds is not None:
            before = signal.signal(signal.SIGALRM, over)
            signal.setitimer(signal.ITIMER_REAL, policy.max_seconds)
        yield
    finally:
        if before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where ``frame`` is."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _held() -> int:
    """The bytes that ``RLIMIT_DATA`` counts now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmData:\s*(\d+) kB", status, re.M)
    assert found is not None, "Linux says so of every process"
    return int(found[1]) * 1024
