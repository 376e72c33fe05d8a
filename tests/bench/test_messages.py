"""The load generator sees to it that every answer is right."""

from __future__ import annotations

from typing import Any

import pytest

from bench.messages import Pair, Queue, Sender, Tally
from txsimplex.boxes import BoxKey
from txsimplex.client.signing import Signer
from txsimplex.encoding import short
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import errors
from txsimplex.smp.bodies import seal_message
from txsimplex.smp.commands import Ack, Send
from txsimplex.smp.messages import End, Err, Message, Msg, Ok
from txsimplex.smp.transmissions import Framing, Transmission, frame

FRAMING = Framing(18, bytes(32))
RELAY_KEY = PrivateKey(Algorithm.X25519, b"r" * 32)
BOX = BoxKey(b"b" * 32)


class Session:
    """What a pair needs of a session; blocks are their contents."""

    def __init__(self) -> None:
        self.framing = FRAMING
        self.signer = Signer(FRAMING, RELAY_KEY.public)
        self.blocks = self
        self.contents: list[bytes] = []
        self.deliver: Any = None

    def open(self, block: bytes) -> bytes:
        return block

    def send(self, content: bytes) -> None:
        self.contents.append(content)

    def deliver_to(self, deliver: Any) -> None:
        self.deliver = deliver

    def when_lost(self, watcher: Any) -> None:
        self.lost = watcher

    def commands(self) -> list[Transmission]:
        """What was sent since this was asked before."""
        contents, self.contents = self.contents, []
        read = [each for content in contents for each in FRAMING.read_commands(content)]
        assert all(isinstance(each, Transmission) for each in read)
        return [each for each in read if isinstance(each, Transmission)]

    def answer(self, command: Transmission, message: Message) -> None:
        self.deliver(frame([FRAMING.answer(command.header, message.encode(18))]))

    def event(self, entity_id: bytes, message: Message) -> None:
        self.deliver(frame([FRAMING.event(entity_id, message.encode(18))]))


class Bench:
    """A pair with its two sessions, of which the test plays the relay."""

    def __init__(self, queues: int = 1, **options: int) -> None:
        self.sender, self.recipient = Session(), Session()
        self.queues = [
            Queue(
                b"recipient%d" % number,
                b"sender%d" % number,
                PrivateKey(Algorithm.ED25519, b"k" * 32),
                PrivateKey(Algorithm.X25519, b"s" * 32),
                BOX,
            )
            for number in range(queues)
        ]
        self.tally = Tally()
        sender: Any = self.sender
        recipient: Any = self.recipient
        given = {"window": 1, "batch": 1, "size": 1000, "verify": 1, **options}
        self.pair = Pair(sender, recipient, self.queues, self.tally, **given)

    def deliver(self, command: Transmission, number: int = 0, body: bytes | None = None) -> None:
        """What a relay does with a SEND: MSG to the recipient, OK to the sender."""
        self.recipient.event(self.queues[number].recipient_id, message(command, body))
        self.sender.answer(command, Ok())


def message(command: Transmission, body: bytes | None = None, msg_id: bytes = b"m" * 24) -> Msg:
    assert isinstance(command.command, Send)
    sealed = seal_message(BOX, msg_id, 0, False, command.command.body if body is None else body)
    return Msg(msg_id, sealed)


def test_one_message_after_the_other() -> None:
    bench = Bench()
    bench.pair.start()
    bodies = set()
    for count in range(1, 4):
        (send,) = bench.sender.commands()
        assert isinstance(send.command, Send)
        assert send.entity_id == b"sender0"
        assert len(send.authenticator) == 80
        assert len(send.command.body) == 1000
        bodies.add(send.command.body)
        bench.deliver(send)
        (ack,) = bench.recipient.commands()
        assert ack.command == Ack(b"m" * 24)
        assert len(ack.authenticator) == 64
        assert bench.sender.commands() == []
        bench.recipient.answer(ack, Ok())
        assert (bench.tally.messages, bench.tally.faults) == (count, [])
    assert len(bodies) == 3
    assert bench.sender.contents
    bench.pair.running = False
    (send,) = bench.sender.commands()
    bench.deliver(send)
    bench.recipient.answer(bench.recipient.commands()[0], Ok())
    assert bench.pair.idle
    assert len(bench.tally.latency) == len(bench.tally.ok_latency) == 4


def test_messages_that_nobody_takes() -> None:
    bench = Bench(queues=2)
    session: Any = Session()
    sender = Sender(session, bench.queues, bench.tally, window=2, batch=1, size=100)
    sender.start()
    sends = session.commands()
    assert [send.entity_id for send in sends] == [b"sender0", b"sender1"]
    session.answer(sends[0], Ok())
    (third,) = session.commands()
    assert (third.entity_id, bench.tally.messages, len(bench.tally.ok_latency)) == (
        b"sender0",
        1,
        1,
    )
    sender.running = False
    for send in (sends[1], third):
        assert not sender.idle
        session.answer(send, Ok())
    assert session.commands() == []
    assert sender.idle
    assert (bench.tally.messages, bench.tally.faults) == (3, [])


def test_groups_of_messages_share_blocks() -> None:
    bench = Bench(queues=6, window=2, batch=3, size=100)
    bench.pair.start()
    assert len(bench.sender.contents) == 2
    sends = bench.sender.commands()
    assert [send.entity_id for send in sends] == [b"sender%d" % n for n in range(6)]
    for number in (0, 1):
        bench.deliver(sends[number], number)
    assert bench.recipient.contents == []
    bench.deliver(sends[2], 2)
    assert len(bench.recipient.contents) == 1
    for ack in bench.recipient.commands():
        bench.recipient.answer(ack, Ok())
    assert len(bench.sender.commands()) == 3
    assert (bench.tally.messages, bench.tally.faults) == (3, [])


def test_the_next_message_in_answer_to_an_ack() -> None:
    bench = Bench(window=2)
    bench.pair.start()
    first, second = bench.sender.commands()
    bench.deliver(first)
    bench.sender.answer(second, Ok())
    (ack,) = bench.recipient.commands()
    bench.recipient.answer(ack, message(second))
    (ack,) = bench.recipient.commands()
    assert bench.tally.messages == 1
    bench.recipient.answer(ack, Ok())
    assert (bench.tally.messages, bench.tally.faults) == (2, [])


def test_no_more_than_the_window_holds() -> None:
    bench = Bench(window=2)
    assert [bench.pair.send_group() for _ in range(3)] == [True, True, False]


@pytest.fixture
def sent() -> tuple[Bench, Transmission]:
    bench = Bench()
    bench.pair.start()
    (send,) = bench.sender.commands()
    return bench, send


def test_a_refused_send_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    bench.sender.answer(send, Err(errors.AUTH))
    assert bench.tally.faults == [f"SEND was answered by {Err(errors.AUTH)}"]


def test_an_answer_that_comes_twice_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    bench.sender.answer(send, Ok())
    assert bench.tally.faults == []
    bench.sender.answer(send, Ok())
    assert len(bench.tally.faults) == 1


def test_another_message_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    bench.deliver(send, body=bytes(1000))
    assert bench.tally.faults == ["a message other than the one sent"]


def test_a_message_that_does_not_open_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, _ = sent
    bench.recipient.event(b"recipient0", Msg(b"m" * 24, bytes(16122)))
    assert bench.tally.faults == ["a message that cannot be decrypted"]


def test_a_message_for_nobody_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    bench.recipient.event(b"recipient1", message(send))
    bench.deliver(send)
    bench.recipient.event(b"recipient0", message(send))
    assert bench.tally.faults == ["a message that was not sent"] * 2


def test_other_events_and_lost_connections_are_faults(sent: tuple[Bench, Transmission]) -> None:
    bench, _ = sent
    bench.recipient.event(b"recipient0", End())
    bench.sender.deliver(b"")
    bench.sender.lost(None)
    assert len(bench.tally.faults) == 3


def test_a_refused_ack_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    bench.deliver(send)
    (ack,) = bench.recipient.commands()
    bench.recipient.answer(ack, Err(errors.NO_MSG))
    assert bench.tally.faults == [f"ACK was answered by {Err(errors.NO_MSG)}"]


def test_an_answer_about_another_queue_is_a_fault(sent: tuple[Bench, Transmission]) -> None:
    bench, send = sent
    header = short(send.corr_id) + short(b"sender1")
    bench.sender.deliver(frame([FRAMING.answer(header, b"OK")]))
    assert bench.tally.faults == ["an answer about another queue"]
