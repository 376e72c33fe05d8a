"""How fast the server's core is while something is measured: a process that `bench.relay` starts.

On a virtual machine the speed of a core depends on who else is on the host, and changes
within seconds. So the same small piece of work, SHA-512 of 16 KiB, is timed again and
again on the core that is being measured; figures of runs in which it took
different times must not be compared.
"""

from __future__ import annotations

import hashlib
import statistics
import time

from twisted.internet.task import LoopingCall

from bench.workers import Handler, obey

_INTERVAL = 0.05
"""Seconds between samples: they take half a percent of the core."""
_WORK = bytes(16384)


class CoreSpeed:
    """Processor time of the piece of work, in microseconds."""

    def __init__(self) -> None:
        self._samples: list[float] = []

    def sample(self) -> None:
        """Does the work once to have it in the caches, and once to time it."""
        hashlib.sha512(_WORK).digest()
        began = time.thread_time()
        hashlib.sha512(_WORK).digest()
        self._samples.append(1e6 * (time.thread_time() - began))

    async def mark(self) -> float | None:
        """The median since the last mark; None without a sample."""
        samples, self._samples = self._samples, []
        return round(statistics.median(samples), 1) if samples else None


def main() -> None:
    """Samples, and obeys until stdin ends."""
    speed = CoreSpeed()
    handlers: dict[str, Handler] = {"mark": speed.mark}
    LoopingCall(speed.sample).start(_INTERVAL)
    obey(handlers)


if __name__ == "__main__":
    main()
