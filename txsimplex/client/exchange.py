"""Which answer belongs to which command (smp-wire.md §9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from txsimplex.client.errors import ClientError, RelayError, TooLargeError, UnexpectedAnswerError
from txsimplex.smp.messages import Err, Message
from txsimplex.smp.transmissions import Received

Answer = Message | ClientError
"""What became of a command: the relay's message, or why there is none."""


@dataclass(slots=True)
class Sent:
    """A command that waits for its answer: its ids."""

    corr_id: bytes
    entity_id: bytes


class Exchange:
    """Commands sent together and their answers, in the order of the commands.

    `finished` is called once with all of them.
    """

    def __init__(self, size: int, finished: Callable[[list[Answer]], object]) -> None:
        self._answers: list[Answer | None] = [None] * size
        self._missing = size
        self._finished = finished

    def settle(self, index: int, answer: Answer) -> None:
        """Takes the answer of one command; a second one for the same command is ignored."""
        if self._answers[index] is not None:
            return
        self._answers[index] = answer
        self._missing -= 1
        if self._missing == 0:
            self._finished([answer for answer in self._answers if answer is not None])


class Pending:
    """The commands of a connection that have no answer yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, tuple[Exchange, int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, sent: Sequence[Sent | TooLargeError], finished: Callable[[list[Answer]], object]
    ) -> None:
        """Waits for the answers to `sent`, then calls `finished` with all of them, in order.

        A `TooLargeError` stands for itself. Raises `ValueError` for a correlation id that
        is empty, since events have that, or that waits for an answer already.
        """
        ids = [item.corr_id for item in sent if isinstance(item, Sent)]
        if b"" in ids or len(set(ids)) < len(ids) or not self._waiting.keys().isdisjoint(ids):
            raise ValueError("a correlation id that is empty or in use")
        if not sent:
            finished([])
        exchange = Exchange(len(sent), finished)
        for index, item in enumerate(sent):
            if isinstance(item, Sent):
                self._waiting[item.corr_id] = (exchange, index, item.entity_id)
        for index, item in enumerate(sent):
            if not isinstance(item, Sent):
                exchange.settle(index, item)

    def settle(self, received: Received) -> bool:
        """Gives a message to the command that it answers; False when there is none."""
        waiting = self._waiting.pop(received.corr_id, None)
        if waiting is None:
            return False
        exchange, index, entity_id = waiting
        exchange.settle(index, _answer(received, entity_id))
        return True

    def fail(self, corr_id: bytes, error: ClientError) -> None:
        """No answer will be waited for any more; nothing happens when none is."""
        waiting = self._waiting.pop(corr_id, None)
        if waiting is not None:
            waiting[0].settle(waiting[1], error)

    def forget(self, corr_ids: Iterable[bytes]) -> None:
        """Nobody wants the answers to these commands any more."""
        for corr_id in corr_ids:
            self._waiting.pop(corr_id, None)

    def fail_all(self, error: ClientError) -> None:
        """No answer will come to any command."""
        while self._waiting:
            self.fail(next(iter(self._waiting)), error)


def _answer(received: Received, entity_id: bytes) -> Answer:
    message = received.message
    if not isinstance(message, Message):
        return UnexpectedAnswerError(f"an answer that cannot be read: {message}")
    if isinstance(message, Err):
        return RelayError(message.error)
    if received.entity_id != entity_id:
        return UnexpectedAnswerError("an answer about another entity")
    return message
