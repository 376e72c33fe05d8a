"""Everything of one store copied into an empty one of another kind.

A store is read as a stream of records, and so is one written: services first, then each queue with
its messages behind it, first to last, then notifications, oldest first. Numbers of queues
and messages are each store's own; everything else is copied as it is. Neither side holds more than
some records in memory.

Whether a queue takes messages again (smp-server.md §6) follows from its messages: it does not while
the last of them is a quota marker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Final

from smpd.queues import Message, Queue
from smpd.stores.interface import Notification, Service

_REPORTED: Final = 100
"""After so many records it is told how far it is."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notification and the notifier that it is for."""

    notifier_id: bytes = field(repr=False)
    notification: Notification


Record = Service | Queue | Message | Waiting
"""A message belongs to the queue before it. A queue's own list of messages is not looked at."""


@dataclass(slots=True)
class Counts:
    """How much of each kind there is. Associations are notifiers that belong to a service."""

    queues: int = 0
    links: int = 0
    messages: int = 0
    notifiers: int = 0
    associations: int = 0
    notifications: int = 0
    services: int = 0

    def add(self, record: Record) -> None:
        """Counts one record with what belongs to it."""
        if isinstance(record, Message):
            self.messages += 1
        elif isinstance(record, Queue):
            self.queues += 1
            self.links += record.link is not None
            if record.notifier is not None:
                self.notifiers += 1
                self.associations += record.notifier.service_id is not None
        elif isinstance(record, Waiting):
            self.notifications += 1
        else:
            self.services += 1

    def items(self) -> Iterator[tuple[str, int]]:
        """Each kind with its count."""
        for each in fields(self):
            yield each.name, getattr(self, each.name)


class Source(ABC):
    """A store that is read, and that nobody else uses meanwhile.

    Its methods raise `StoreUnusable`.
    """

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All that is in it."""

    @abstractmethod
    def counts(self) -> Counts:
        """How much is in it, as the store itself counts."""

    def confirm(self) -> None:
        """Called when all is read: raises if somebody has begun to use it."""
        return

    @abstractmethod
    def close(self) -> None:
        """Leaves it as it was."""


class Target(ABC):
    """A store that is written, and that nobody can use before it is finished.

    Its methods raise `StoreUnusable`.
    """

    @abstractmethod
    def write(self, record: Record) -> None:
        """Adds a record; records come in the order in which sources give them."""

    @abstractmethod
    def counts(self) -> Counts:
        """How much was written, as the store itself counts."""

    @abstractmethod
    def finish(self) -> None:
        """Makes all of it safe, and the store one that a relay can use."""

    @abstractmethod
    def close(self) -> None:
        """Without `finish` before it, leaves an empty store or none."""


def copy(
    source: Source, target: Target, progress: Callable[[Counts], object]
) -> tuple[Counts, Counts]:
    """Copies everything; how much is in each of them then, by their own counts.

    The target is finished if both counts are the same. Tells `progress` now and then how
    much is copied. Raises `StoreUnusable`; then, and if the counts differ, the target is to be
    closed, and nothing is in it.
    """
    done = Counts()
    untold = 0
    for record in source.records():
        target.write(record)
        done.add(record)
        untold += 1
        if untold == _REPORTED:
            untold = 0
            progress(replace(done))
    progress(replace(done))
    there, written = source.counts(), target.counts()
    if there == written:
        source.confirm()
        target.finish()
    return there, written


def behind_their_queues(
    queues: Iterable[Queue], messages: Iterable[tuple[int, Message]]
) -> Iterator[Queue | Message]:
    """Each queue with its messages behind it.

    Messages come with the number of their queue, and both in the order of these numbers.
    Those whose queue is not there are left out.
    """
    rest = iter(messages)
    following = next(rest, None)
    for queue in queues:
        # Who gets the queue gives it another number.
        number = queue.number
        while following is not None and following[0] < number:
            following = next(rest, None)
        yield queue
        while following is not None and following[0] == number:
            yield following[1]
            following = next(rest, None)
