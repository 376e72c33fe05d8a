"""Pairs of connections, of which one sends messages and the other receives and confirms them.

Every answer is verified: each SEND and ACK must be answered by OK (or, for ACK, by the
next message), each message must come to the right recipient in the right order, and
the bodies of some or all of them are decrypted and compared.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from bench.percentiles import Durations
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.client.session import Session
from txsimplex.client.smp import SMPClient
from txsimplex.encoding import ParseError, short
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands
from txsimplex.smp.bodies import MessageBody, open_body
from txsimplex.smp.messages import Msg, Ok
from txsimplex.smp.transmissions import Received, TooLarge, pack

_NUMBER_SIZE = 8
_TELL_FAULTS = 5


class Tally:
    """What the pairs of one worker have done."""

    def __init__(self) -> None:
        self.messages = 0
        self.late = 0
        self.latency = Durations()
        """From SEND to MSG."""
        self.ok_latency = Durations()
        """From SEND to OK."""
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        """Something was not as it must be."""
        if len(self.faults) < _TELL_FAULTS:
            self.faults.append(text)


class Queue:
    """One queue of a pair: ids, keys, and what is under way in it."""

    __slots__ = ("box", "key", "recipient_id", "sender_id", "sender_key", "sent")

    def __init__(
        self,
        recipient_id: bytes,
        sender_id: bytes,
        key: PrivateKey,
        sender_key: PrivateKey,
        box: BoxKey,
    ) -> None:
        self.recipient_id = recipient_id
        self.sender_id = sender_id
        self.key = key
        self.sender_key = sender_key
        self.box = box
        # Number and time of each message sent and not yet received.
        self.sent: deque[tuple[int, float]] = deque()


class Connection:
    """One of a pair's connections: commands without answer, and blocks out and in."""

    def __init__(self, session: Session, tally: Tally, take: Callable[[Received], object]) -> None:
        self.session = session
        self._tally = tally
        self._take = take
        self._corr_id_head = os.urandom(16)
        self._commands = 0
        self.pending: dict[bytes, tuple[Queue, float]] = {}
        session.blocks.deliver_to(self._received)
        session.blocks.when_lost(lambda _: tally.fault("a connection was lost"))

    def transmission(
        self, queue: Queue, entity_id: bytes, command: bytes, key: PrivateKey
    ) -> bytes:
        """A command, whose answer `answered` then gives back to `queue`."""
        self._commands += 1
        corr_id = self._corr_id_head + self._commands.to_bytes(8, "big")
        self.pending[corr_id] = queue, perf_counter()
        return self.session.signer.transmission(corr_id, entity_id, command, key)

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Sends commands in as few blocks as hold them."""
        for content in pack(transmissions):
            if isinstance(content, TooLarge):
                raise ValueError("a message that fits into no block")
            self.session.send(content)

    def answered(
        self, received: Received, entity_id: Callable[[Queue], bytes]
    ) -> tuple[Queue, float] | None:
        """The queue whose command this answers, and when that was made; else it is a fault."""
        asked = self.pending.pop(received.corr_id, None)
        if asked is None:
            self._tally.fault(f"not an answer to any command: {received.message}")
        elif received.entity_id != entity_id(asked[0]):
            self._tally.fault("an answer about another queue")
        else:
            return asked
        return None

    def _received(self, block: bytes) -> None:
        try:
            content = self.session.open(block)
        except (BoxError, ParseError):
            self._tally.fault("a block that does not open")
            return
        for received in self.session.framing.read_messages(content):
            self._take(received)


class Sender:
    """A sender and its queues, whose messages nobody takes.

    At most `window` groups of `batch` messages are under way, from their SEND until it
    is answered. The messages of a group go to queues in turn. The body of every message
    has `size` bytes.
    """

    def __init__(
        self,
        sender: Session,
        queues: Sequence[Queue],
        tally: Tally,
        *,
        window: int,
        batch: int,
        size: int,
    ) -> None:
        self._sender = Connection(sender, tally, self._at_sender)
        self._queues = deque(queues)
        self._tally = tally
        self._batch = batch
        self._filling = os.urandom(max(0, size - _NUMBER_SIZE))
        self._size = size
        self._free = window * batch
        self._number = 0
        self.running = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._sender.pending

    def start(self) -> None:
        """Sends, and again whenever there is room in the window, until `running` is false."""
        self.running = True
        while self._free >= self._batch:
            self.send_group()

    def send_group(self) -> bool:
        """Sends one group of messages if the window has room for it."""
        if self._free < self._batch:
            return False
        self._free -= self._batch
        group = []
        transmissions = []
        for _ in range(self._batch):
            queue = self._queues[0]
            self._queues.rotate(-1)
            self._number += 1
            command = b"SEND F " + self._body(self._number)
            transmissions.append(
                self._sender.transmission(queue, queue.sender_id, command, queue.sender_key)
            )
            group.append((queue, self._number))
        self._sent(group)
        self._sender.send(transmissions)
        return True

    def _sent(self, group: Sequence[tuple[Queue, int]]) -> None:
        """The messages with these numbers are about to be sent."""

    def _body(self, number: int) -> bytes:
        return (number.to_bytes(_NUMBER_SIZE, "big") + self._filling)[: self._size]

    def _at_sender(self, received: Received) -> None:
        asked = self._sender.answered(received, lambda queue: queue.sender_id)
        if asked is None:
            return
        if not isinstance(received.message, Ok):
            self._tally.fault(f"SEND was answered by {received.message}")
        self._tally.ok_latency.add(perf_counter() - asked[1])
        self._accepted()

    def _accepted(self) -> None:
        """A SEND was answered."""
        self._done()

    def _done(self) -> None:
        """A message is no longer under way."""
        self._tally.messages += 1
        self._free += 1
        if self.running:
            self.send_group()


class Pair(Sender):
    """A sender and a recipient with their queues.

    As `Sender`, but messages are under way until their ACK is answered, and as many
    acknowledgements share a block. The body of one message in `verify` is decrypted
    and compared.
    """

    def __init__(
        self,
        sender: Session,
        recipient: Session,
        queues: Sequence[Queue],
        tally: Tally,
        *,
        window: int,
        batch: int,
        size: int,
        verify: int,
    ) -> None:
        super().__init__(sender, queues, tally, window=window, batch=batch, size=size)
        self._recipient = Connection(recipient, tally, self._at_recipient)
        self._by_id = {queue.recipient_id: queue for queue in queues}
        self._verify = verify
        self._confirming: list[tuple[Queue, bytes]] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return (
            super().idle
            and not self._recipient.pending
            and not any(queue.sent for queue in self._queues)
        )

    def _sent(self, group: Sequence[tuple[Queue, int]]) -> None:
        now = perf_counter()
        for queue, number in group:
            queue.sent.append((number, now))

    def _accepted(self) -> None:
        return

    def _at_recipient(self, received: Received) -> None:
        message = received.message
        if not received.corr_id:
            if isinstance(message, Msg):
                self._message(received.entity_id, message)
            else:
                self._tally.fault(f"an event that is not a message: {message}")
            return
        if self._recipient.answered(received, lambda queue: queue.recipient_id) is None:
            return
        if isinstance(message, Msg):
            self._message(received.entity_id, message)
        elif not isinstance(message, Ok):
            self._tally.fault(f"ACK was answered by {message}")
        self._done()

    def _message(self, recipient_id: bytes, message: Msg) -> None:
        queue = self._by_id.get(recipient_id)
        if queue is None or not queue.sent:
            self._tally.fault("a message that was not sent")
            return
        number, sent_at = queue.sent.popleft()
        self._tally.latency.add(perf_counter() - sent_at)
        if number % self._verify == 0:
            self._compare(queue, message, number)
        self._confirming.append((queue, message.msg_id))
        if len(self._confirming) >= self._batch:
            self._confirm()

    def _compare(self, queue: Queue, message: Msg, number: int) -> None:
        try:
            opened = open_body(queue.box, message.msg_id, message.body)
        except (BoxError, ParseError):
            self._tally.fault("a message that cannot be decrypted")
            return
        if not isinstance(opened, MessageBody) or opened.body != self._body(number):
            self._tally.fault("a message other than the one sent")

    def _confirm(self) -> None:
        confirming, self._confirming = self._confirming, []
        self._recipient.send(
            [
                self._recipient.transmission(
                    queue, queue.recipient_id, b"ACK " + short(msg_id), queue.key
                )
                for queue, msg_id in confirming
            ]
        )


async def make_queues(
    recipient: SMPClient,
    count: int,
    password: bytes | None,
    random: Callable[[int], bytes],
    *,
    subscribe: bool = True,
) -> list[Queue]:
    """Makes queues as apps have them: recipient's key of Ed25519, secured by one of X25519."""
    queues = []
    for _ in range(count):
        key = PrivateKey.generate(Algorithm.ED25519, random)
        sender_key = PrivateKey.generate(Algorithm.X25519, random)
        dh_key = PrivateKey.generate(Algorithm.X25519, random)
        created = await recipient.create_queue(key, dh_key, password=password, subscribe=subscribe)
        await recipient.secure(created.recipient_id, key, sender_key.public)
        queues.append(Queue(created.recipient_id, created.sender_id, key, sender_key, created.box))
    return queues


async def delete_queues(recipient: SMPClient, queues: Sequence[Queue]) -> None:
    """Leaves nothing behind on the server."""
    for queue in queues:
        await recipient.request(commands.Del(), queue.recipient_id, queue.key)
