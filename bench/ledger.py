"""What a relay was asked, what it answered and what it sent, over crashes: pure bookkeeping.

The messages of a queue are numbered as they are sent. Between two crashes is a run; with
several relays, each new subscription begins a run of its queue. A message is safe when its SEND
was answered OK: it has to come, in the order of numbers and unchanged, until an ACK of it is
answered, and never after that. Everything that was not answered when the relay was killed
may have taken effect or not, but not later than what was answered next of the same queue.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

_NUMBER_SIZE: Final = 8
_LONGEST: Final = 16048
_FAULTS_TOLD: Final = 20
_NEVER: Final = -1
_HISTORY: Final = 80
"""What is remembered of a queue, to be told when something is wrong."""
_HISTORIES_TOLD: Final = 3


def numbered_body(seed: bytes, number: int) -> bytes:
    """The body of message `number` of the queue with `seed`; one in eight has full length."""
    filling = hashlib.sha512(seed + number.to_bytes(_NUMBER_SIZE, "big")).digest()
    size = _LONGEST if filling[0] < 32 else _NUMBER_SIZE + 4 * filling[1]
    repeated = filling * (size // len(filling) + 1)
    return (number.to_bytes(_NUMBER_SIZE, "big") + repeated)[:size]


def number_of(seed: bytes, body: bytes) -> int | None:
    """The number of a `numbered_body`; None when it is not one of this queue, unchanged."""
    number = int.from_bytes(body[:_NUMBER_SIZE], "big")
    return number if body == numbered_body(seed, number) else None


@dataclass(slots=True)
class _Message:
    """A message that may still be in the queue."""

    number: int
    drains: int
    """How many ACKs of quota markers of its queue had been sent when it was sent."""
    while_draining: bool
    """Whether one of these had no answer then: it may take effect before or after this."""
    while_full: bool
    """Whether the queue was known to be full when it was sent."""
    accepted: bool = False
    msg_id: bytes | None = None
    seen_in: int = _NEVER
    ack_asked_in: int = _NEVER

    @property
    def owed(self) -> bool:
        """Whether the relay has to keep it."""
        return self.accepted and self.ack_asked_in == _NEVER


@dataclass(slots=True)
class _Queue:
    """What is known of one queue."""

    run: int = 0
    sent: int = 0
    accepted_to: int = 0
    """The greatest number that was answered OK."""
    there: dict[int, _Message] = field(default_factory=dict)
    """Messages that may be in the queue."""
    gone: dict[int, _Message] = field(default_factory=dict)
    """Messages that were not there when a later one was first; they must not come back."""
    missing: dict[int, _Message] = field(default_factory=dict)
    """The same of messages that had to be there: lost, unless they come after all."""
    refused: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    last: int = 0
    """The number that came last in `last_run`."""
    last_run: int = _NEVER
    full: bool = False
    """A SEND was answered QUOTA, and the marker that says so has not been acknowledged."""
    drains: int = 0
    draining: bool = False
    """The ACK of a marker waits for its answer."""
    markers: dict[bytes, bool] = field(default_factory=dict)
    """Quota markers that came, and whether their ACK was answered."""
    watermarks: dict[bytes, int] = field(default_factory=dict)
    """What had been answered OK when the ACK of a message or marker was asked."""
    delete_asked: bool = False
    delete_answered: bool = False
    accepted_before: int = 0
    """What had been answered OK when the last SUB was asked."""
    full_before: bool = False
    """Whether it was known to be full then."""
    history: deque[str] = field(default_factory=lambda: deque(maxlen=_HISTORY))


class Ledger:
    """All queues. They are named by any key of the caller's.

    `run` is the number of crashes so far. `histories` say what was asked, answered and seen of
    the queues with the first faults.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, _Queue] = {}
        self.run = 0
        self.accepted = 0
        self.acknowledged = 0
        self.redelivered = 0
        self.duplicated_after_ack = 0
        self.out_of_order = 0
        self.altered = 0
        self.queues_created = 0
        self.queues_deleted = 0
        self.queues_lost = 0
        self.queues_returned = 0
        self.wrong_answers = 0
        self._lost_with_queues = 0
        self._faults: dict[str, list[int]] = {}
        self.histories: list[str] = []

    @property
    def lost(self) -> int:
        """Messages that were answered OK and did not come, so far."""
        return self._lost_with_queues + sum(len(each.missing) for each in self._queues.values())

    @property
    def faulty(self) -> bool:
        """Whether anything was not as it must be."""
        return bool(self._faults or self.lost)

    @property
    def faults(self) -> list[str]:
        """What was not as it must be, each kind with how often it was and when first."""
        return [
            f"{text} ({len(runs)} times, first after {runs[0]} crashes)"
            for text, runs in self._faults.items()
        ]

    def crashed(self) -> None:
        """The relay was killed: what has no answer will get none."""
        self.killed()
        for queue in self._queues.values():
            self._begin_run(queue)

    def killed(self) -> None:
        """A relay of several was killed: what that means is told of each queue."""
        self.run += 1

    def _begin_run(self, queue: _Queue) -> None:
        queue.run += 1
        queue.watermarks.clear()
        queue.draining = False
        queue.history.append(f"run {queue.run}")

    def wrong_answer(self, text: str, key: Hashable = None) -> None:
        """An answer that no state of the relay explains."""
        self.wrong_answers += 1
        self._fault(text, self._queues.get(key))

    def _fault(self, text: str, queue: _Queue | None = None) -> None:
        if text in self._faults or len(self._faults) < _FAULTS_TOLD:
            self._faults.setdefault(text, []).append(self.run)
        if queue is not None and len(self.histories) < _HISTORIES_TOLD:
            self.histories.append(f"{text}: {', '.join(queue.history)}")

    def note(self, key: Hashable, text: str) -> None:
        """Something that the history of a queue shall tell."""
        self._queues[key].history.append(text)

    # -- queues

    def created(self, key: Hashable) -> None:
        """NEW was answered."""
        self._queues[key] = _Queue()
        self.queues_created += 1

    def delete_asked(self, key: Hashable) -> None:
        """DEL is about to be sent."""
        self._queues[key].delete_asked = True

    def delete_answered(self, key: Hashable) -> None:
        """DEL was answered OK."""
        queue = self._queues[key]
        if not queue.delete_answered:
            queue.delete_answered = True
            self.queues_deleted += 1

    def found(self, key: Hashable, there: bool) -> bool:
        """Whether the relay knows the queue, after a crash; False when it is no use any more."""
        queue = self._queues[key]
        if there and queue.delete_answered:
            self.queues_returned += 1
            self._fault("a deleted queue is there again", queue)
            return False
        if there:
            queue.delete_asked = False
            return True
        if not queue.delete_asked:
            self.queues_lost += 1
            self._fault("a queue is not there any more", queue)
            self._lost_with_queues += sum(each.owed for each in queue.there.values())
            self._lost_with_queues += len(queue.missing)
            queue.there.clear()
            queue.missing.clear()
            queue.delete_asked = queue.delete_answered = True
        self.delete_answered(key)
        return False

    # -- subscriptions, when there are several relays

    def subscribing(self, key: Hashable, where: str) -> None:
        """SUB is about to be sent, on another connection than before."""
        queue = self._queues[key]
        self._begin_run(queue)
        queue.accepted_before, queue.full_before = queue.accepted_to, queue.full
        queue.history.append(f"SUB at {where}")

    def nothing_came(self, key: Hashable) -> None:
        """SUB was answered, and no message with it."""
        queue = self._queues[key]
        queue.history.append("empty")
        self._pass(queue, queue.accepted_before + 1)
        if queue.full_before and queue.full:
            queue.full = False
            self.wrong_answer("a quota marker did not come", key)

    def run_of(self, key: Hashable) -> int:
        """The number of the subscription."""
        return self._queues[key].run

    def owes(self, key: Hashable) -> bool:
        """Whether there is a message that has to come, and was not seen in this run."""
        queue = self._queues[key]
        return any(each.owed and each.seen_in != queue.run for each in queue.there.values())

    # -- the sender

    def send_asked(self, key: Hashable) -> int:
        """The number of the message that is about to be sent."""
        queue = self._queues[key]
        queue.sent += 1
        queue.history.append(f"SEND {queue.sent}")
        queue.there[queue.sent] = _Message(queue.sent, queue.drains, queue.draining, queue.full)
        return queue.sent

    def send_answered(self, key: Hashable, number: int) -> None:
        """SEND was answered OK."""
        queue = self._queues[key]
        self.accepted += 1
        queue.history.append(f"OK {number}")
        queue.accepted_to = max(queue.accepted_to, number)
        message = queue.there.get(number) or queue.gone.get(number)
        if message is None:
            return
        message.accepted = True
        if message.while_full and message.drains == queue.drains:
            self.wrong_answer("a message was taken by a full queue", key)
        if message.owed and queue.gone.pop(number, None) is not None:
            self._missing(queue, message)

    def send_refused(self, key: Hashable, number: int) -> None:
        """SEND was answered QUOTA: a marker takes the place of the first one refused."""
        queue = self._queues[key]
        message = queue.there.pop(number, None) or queue.gone.pop(number, None)
        queue.refused.add(number)
        queue.history.append(f"QUOTA {number}")
        if message is None or message.seen_in != _NEVER:
            self.wrong_answer("a message that came was refused", key)
        elif message.drains == queue.drains and not message.while_draining:
            queue.full = True

    def send_failed(self, key: Hashable, number: int, answer: str) -> None:
        """SEND was answered by another error, which is right only if the queue goes away."""
        queue = self._queues[key]
        queue.there.pop(number, None)
        queue.refused.add(number)
        queue.history.append(f"{answer} {number}")
        if not queue.delete_asked:
            self.wrong_answer(f"SEND was answered by {answer}", key)

    def send_in_doubt(self, key: Hashable, number: int, answer: str) -> None:
        """SEND was answered by an error that does not say that it was not done."""
        self._queues[key].history.append(f"{answer} {number}")

    # -- the recipient

    def seen(self, key: Hashable, number: int | None, msg_id: bytes) -> None:
        """A message came; `number` is None when its content is not what was sent."""
        queue = self._queues[key]
        queue.history.append(f"MSG {number}")
        if number is None or number > queue.sent or number in queue.refused:
            self.altered += 1
            self._fault("a message that was not sent or was refused", queue)
            return
        if number in queue.acknowledged:
            self.duplicated_after_ack += 1
            self._fault("a message came after its ACK was answered", queue)
            return
        message = queue.there.get(number)
        if message is None or (queue.last_run == queue.run and number < queue.last):
            self.out_of_order += 1
            self._fault("a message came after one that was sent later", queue)
        elif message.seen_in == queue.run:
            self.wrong_answer("a message came twice to one subscription", key)
        if message is None:
            message = queue.missing.pop(number, None) or queue.gone.pop(number)
            queue.there[number] = message
        if message.msg_id not in (None, msg_id):
            self.altered += 1
            self._fault("a message came with another id than before", queue)
        self.redelivered += message.seen_in != _NEVER
        message.seen_in = queue.run
        message.msg_id = msg_id
        self._pass(queue, number)
        queue.last, queue.last_run = number, queue.run

    def marker_seen(self, key: Hashable, msg_id: bytes) -> None:
        """The marker came that tells the recipient of refused messages."""
        queue = self._queues[key]
        queue.history.append("MSG marker")
        if queue.markers.get(msg_id):
            self.duplicated_after_ack += 1
            self._fault("a quota marker came after its ACK was answered", queue)
            return
        unanswered = any(not message.accepted for message in queue.there.values())
        if msg_id not in queue.markers and not queue.full and not unanswered:
            self.wrong_answer("a quota marker, and nothing had been refused", key)
        queue.markers[msg_id] = False
        # Nothing is taken behind a marker: what was taken before must have come.
        self._pass(queue, queue.accepted_to + 1)

    def ack_asked(self, key: Hashable, number: int | None, msg_id: bytes) -> None:
        """ACK is about to be sent; `number` is None for a marker."""
        queue = self._queues[key]
        queue.history.append(f"ACK {number or 'marker'}")
        queue.watermarks[msg_id] = queue.accepted_to
        if number is None:
            queue.full = False
            queue.draining = True
            queue.drains += 1
        elif number in queue.there:
            queue.there[number].ack_asked_in = queue.run

    def ack_answered(
        self, key: Hashable, number: int | None, msg_id: bytes, *, empty: bool
    ) -> None:
        """ACK was answered, by OK when `empty` and else by the next message."""
        queue = self._queues[key]
        watermark = queue.watermarks.pop(msg_id, 0)
        queue.history.append(f"{'OK' if empty else 'MSG'} to ACK {number or 'marker'}")
        if number is None:
            queue.markers[msg_id] = True
            queue.draining = False
        else:
            self.acknowledged += 1
            queue.acknowledged.add(number)
            queue.there.pop(number, None)
        if empty:
            self._pass(queue, watermark + 1)

    def ack_answered_elsewhere(self, key: Hashable, number: int, run: int) -> None:
        """An ACK of an earlier `run` was answered OK, when another connection was subscribed."""
        queue = self._queues[key]
        queue.history.append(f"OK to ACK {number} of run {run}")
        message = queue.there.pop(number, None)
        if message is not None and message.seen_in > run:
            self.wrong_answer("an ACK was taken from who had lost the queue to another", key)
        self.acknowledged += 1
        queue.acknowledged.add(number)

    def ack_failed(self, key: Hashable, answer: str) -> None:
        """ACK of a message that came was answered by an error."""
        if not self._queues[key].delete_asked:
            self.wrong_answer(f"ACK was answered by {answer}", key)

    def empty(self, key: Hashable) -> None:
        """The queue was found empty while nothing was being sent to it."""
        queue = self._queues[key]
        self._pass(queue, queue.sent + 1)
        if queue.full:
            queue.full = False
            self.wrong_answer("a quota marker did not come", key)

    def _pass(self, queue: _Queue, number: int) -> None:
        """What was sent before `number` is not there: `number` is first, or nothing is."""
        for message in [each for each in queue.there.values() if each.number < number]:
            if message.ack_asked_in == queue.run:
                # Its removal may be undone by a crash until the ACK is answered.
                continue
            del queue.there[message.number]
            if message.owed:
                self._missing(queue, message)
            else:
                queue.gone[message.number] = message

    def _missing(self, queue: _Queue, message: _Message) -> None:
        queue.missing[message.number] = message
        self._fault("a message that was answered OK did not come", queue)

    # -- the report

    def as_json(self) -> dict[str, int | list[str]]:
        """The counts, for the report."""
        return {
            "messages_answered_ok": self.accepted,
            "acknowledged": self.acknowledged,
            "lost": self.lost,
            "duplicated_after_ack": self.duplicated_after_ack,
            "out_of_order": self.out_of_order,
            "altered": self.altered,
            "wrong_answers": self.wrong_answers,
            "queues_lost": self.queues_lost,
            "queues_returned": self.queues_returned,
            "redelivered": self.redelivered,
            "queues_created": self.queues_created,
            "queues_deleted": self.queues_deleted,
            "faults": self.faults,
        }
