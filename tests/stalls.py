"""How long the machine kept this process from running, which is no fault of what is tested."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

_TICK: Final = 0.005


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """What is in the block may take so long, and what the machine took beside."""
    with Stalls() as stalls:
        start = time.monotonic()
        yield
        took = time.monotonic() - start
    assert took < seconds + stalls.longest, f"{took:.2f} s, stalled for {stalls.longest:.2f} s"


class Stalls:
    """A thread that does nothing but tick, inside of the block.

    A program that waits for something in its own thread does not keep another one from ticking;
    a machine that has other things to do does. So a time that must not be longer than some
    limit may be longer by `longest`.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds by which a tick has come too late, at most."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(_TICK):
            now = time.monotonic()
            self.longest = max(self.longest, now - last - _TICK)
            last = now
