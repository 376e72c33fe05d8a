"""Threads of a store that do nothing by themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Held:
    """A `Worker` whose jobs are done when a test says so, or when it is stopped."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        """See `Worker`."""
        self.jobs.append(job)

    def stop(self, seconds: float) -> bool:
        """See `Worker`."""
        while self.jobs:
            self.jobs.popleft()()
        return True
