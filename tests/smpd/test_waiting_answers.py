"""Answers wait until what they depend on is safe (docs/architecture.md)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from smpd.conversation import Conversation
from smpd.queues import Message, Queue
from smpd.relay import Outcome, Relay
from smpd.stores.interface import StoreError, Written
from smpd.stores.memory import MemoryStore
from tests.smpd.people import Clock as WallClock, key, new_relay
from tests.smpd.wires import Client, new_sessions
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import Received

FULL = m.Err(errors.store_error("the disk is full"))


class SlowStore(MemoryStore):
    """A store whose changes are safe when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[bytes, int] = {}

    def note(self, queue: Queue) -> None:
        """One more change."""
        if self.failure is not None:
            raise StoreError(self.failure)
        self.noted += 1
        self.last[queue.recipient_id] = self.noted

    def unsafe(self, queue: Queue) -> int:
        last = self.last.get(queue.recipient_id, 0)
        return last if last > self.committed else 0

    def commit(self, mark: int | None = None) -> None:
        """All changes, or those up to `mark`, are safe."""
        self.committed = self.noted if mark is None else mark
        self.on_commit()

    def fail(self, problem: str | None) -> None:
        """The disk is full, or is no longer."""
        self.failure = problem
        self.on_commit()

    def add(self, queue: Queue) -> None:
        self.note(queue)
        super().add(queue)

    def secure(self, queue: Queue, key: Any) -> None:
        self.note(queue)
        super().secure(queue, key)

    def write(self, queue: Queue, message: Message, quota: int) -> Written:
        self.note(queue)
        return super().write(queue, message, quota)

    def remove(self, queue: Queue, msg_id: bytes) -> Message | None:
        self.note(queue)
        return super().remove(queue, msg_id)


class Scene:
    """A relay on such a store, with two clients; `queue` is the first one's."""

    def __init__(self, apart: bool = False, quota: int = 128) -> None:
        self.store = SlowStore()
        self.clock = Clock()
        self.relay: Relay = new_relay(self.store, WallClock(), quota=quota)
        self.sessions = new_sessions(self.relay, self.clock, apart=apart)
        self.recipient, self.sender = Client(self.sessions), Client(self.sessions)
        self.key, dh_key = key(), key(Algorithm.X25519)
        new = c.New(self.key.public, dh_key.public, None, True)
        self.recipient.send(self.recipient.transmission(new, b"", self.key))
        assert self.answers(self.recipient) == []
        self.store.commit()
        (ids,) = self.answers(self.recipient)
        assert isinstance(ids, m.Ids)
        self.ids = ids

    def answers(self, client: Client) -> list[m.Message | Error]:
        """What has come, of all blocks."""
        return [one.message for one in self.all(client)]

    def all(self, client: Client) -> list[Received]:
        """The same with ids."""
        return [one for block in client.received() for one in block]

    def send(self, body: bytes = b"hello") -> None:
        """A message from the sender."""
        self.sender.send(self.sender.transmission(c.Send(False, body), self.ids.sender_id))

    def ask(self, command: c.Command) -> None:
        """A command of the recipient."""
        entity_id = b"" if isinstance(command, c.Ping) else self.ids.recipient_id
        private = None if isinstance(command, c.Ping) else self.key
        self.recipient.send(self.recipient.transmission(command, entity_id, private))


@pytest.fixture(params=[False, True], ids=["one process", "an edge"])
def apart(request: pytest.FixtureRequest) -> bool:
    """Whether there is a channel between sessions and relay."""
    found: bool = request.param
    return found


def test_a_message_is_delivered_before_it_is_safe_and_confirmed_after(apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    (event,) = scene.all(scene.recipient)
    assert isinstance(event.message, m.Msg)
    assert scene.answers(scene.sender) == []
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Ok()]
    assert not scene.sessions.holding


def test_an_answer_that_cannot_be_given_keeps_no_others(
    apart: bool, monkeypatch: pytest.MonkeyPatch, logged_failures: list[Failure]
) -> None:
    """Its connection ends, and the fault is logged."""
    scene = Scene(apart)
    scene.send()
    scene.ask(c.Key(key().public))
    faulty, _ = scene.sessions.holding
    give = Conversation._answer

    def answer(conversation: Conversation, outcome: Outcome) -> None:
        if conversation is faulty:
            raise RuntimeError("an answer")
        give(conversation, outcome)

    monkeypatch.setattr(Conversation, "_answer", answer)
    scene.store.commit()
    assert [failure.type for failure in logged_failures] == [RuntimeError]
    logged_failures.clear()
    assert scene.sender.wire.closed is not None
    assert scene.recipient.wire.closed is None
    assert m.Ok() in scene.answers(scene.recipient)


def test_only_what_the_mark_has_passed_is_answered(apart: bool) -> None:
    scene = Scene(apart)
    scene.send(b"one")
    first = scene.store.noted
    scene.send(b"two")
    scene.store.commit(first)
    assert scene.answers(scene.sender) == [m.Ok()]
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Ok()]


def test_later_answers_stay_behind(apart: bool) -> None:
    """The order of answers is that of the commands, whether they depend on a change or not."""
    scene = Scene(apart)
    scene.ask(c.Key(key().public))
    scene.ask(c.Ping())
    assert scene.answers(scene.recipient) == []
    scene.store.commit()
    assert scene.answers(scene.recipient) == [m.Ok(), m.Pong()]
    scene.ask(c.Ping())
    assert scene.answers(scene.recipient) == [m.Pong()]


def test_other_connections_do_not_wait(apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    scene.answers(scene.recipient)
    scene.ask(c.Ping())
    assert scene.answers(scene.recipient) == [m.Pong()]


def test_what_was_done_already_is_safe_only_when_it_is(apart: bool) -> None:
    """A KEY that finds the same key there waits like the first one."""
    scene = Scene(apart)
    sender_key = key().public
    scene.ask(c.Key(sender_key))
    noted = scene.store.noted
    scene.ask(c.Key(sender_key))
    assert scene.store.noted == noted
    assert scene.answers(scene.recipient) == []
    scene.store.commit()
    assert scene.answers(scene.recipient) == [m.Ok(), m.Ok()]


def test_reading_does_not_wait(apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    scene.answers(scene.recipient)
    scene.ask(c.Que())
    (answer,) = scene.answers(scene.recipient)
    assert isinstance(answer, m.Info)


def test_a_quota_marker_is_safe_before_the_sender_knows(apart: bool) -> None:
    """ERR QUOTA promises the recipient's notice that there is room again."""
    scene = Scene(apart, quota=1)
    scene.recipient.leave()
    scene.send(b"one")
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Ok()]
    scene.send(b"two")
    assert scene.answers(scene.sender) == []
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Err(errors.QUOTA)]


def test_refusals_do_not_wait(apart: bool) -> None:
    scene = Scene(apart)
    scene.ask(c.Key(key().public))
    scene.recipient.send(scene.recipient.transmission(c.Que(), scene.ids.recipient_id, key()))
    (answer,) = scene.answers(scene.recipient)
    assert answer == m.Err(errors.AUTH)
    scene.store.commit()
    assert scene.answers(scene.recipient) == [m.Ok()]


def test_an_acknowledgement_is_confirmed_when_it_is_safe(apart: bool) -> None:
    scene = Scene(apart)
    scene.send(b"one")
    scene.send(b"two")
    scene.store.commit()
    (first,) = scene.answers(scene.recipient)
    assert isinstance(first, m.Msg)
    scene.ask(c.Ack(first.msg_id))
    assert scene.answers(scene.recipient) == []
    scene.store.commit()
    (second,) = scene.answers(scene.recipient)
    assert isinstance(second, m.Msg)


def test_a_store_that_fails_is_waited_for_and_then_an_error(apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    scene.store.fail("the disk is full")
    scene.clock.advance(4.9)
    assert scene.answers(scene.sender) == []
    scene.sender.send(scene.sender.transmission(c.Ping()))
    scene.clock.advance(0.2)
    (error, pong) = scene.all(scene.sender)
    assert error.message == FULL
    assert error.entity_id == scene.ids.sender_id
    assert pong.message == m.Pong()
    # From now on it is said at once, before anything is changed.
    scene.send(b"another")
    assert scene.answers(scene.sender) == [FULL]
    scene.store.fail(None)
    scene.store.commit()
    scene.send(b"a third")
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Ok()]


def test_a_store_that_recovers_in_time_is_no_error(apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    scene.store.fail("the disk is full")
    scene.clock.advance(3)
    scene.store.fail(None)
    scene.store.commit()
    assert scene.answers(scene.sender) == [m.Ok()]
    scene.clock.advance(10)
    assert scene.answers(scene.sender) == []
    assert scene.clock.getDelayedCalls() == []


def test_a_client_that_does_not_wait_is_not_read(apart: bool) -> None:
    """What one connection can have under way is bounded."""
    scene = Scene(apart)
    for number in range(31):
        scene.send(b"%d" % number)
    reading = [scene.sender.wire.reading]
    scene.send(b"one more")
    reading.append(scene.sender.wire.reading)
    scene.sender.session.pauseProducing()
    scene.sender.session.resumeProducing()
    reading.append(scene.sender.wire.reading)
    scene.store.commit()
    reading.append(scene.sender.wire.reading)
    assert reading == [True, False, False, True]
    assert scene.answers(scene.sender) == [m.Ok()] * 32


@pytest.mark.parametrize("then", ["commit", "give up"])
def test_a_client_that_left_is_forgotten(then: str, apart: bool) -> None:
    scene = Scene(apart)
    scene.send()
    scene.sender.leave()
    assert not scene.sessions.holding
    if then == "commit":
        scene.store.commit()
    else:
        scene.store.fail("the disk is full")
        scene.clock.advance(10)
    assert scene.sender.wire.blocks == []


@pytest.mark.parametrize("version", [6, 10, 18])
def test_an_error_instead_of_an_answer(version: int, apart: bool) -> None:
    """It has the correlation id and entity of the answer, in every version."""
    scene = Scene(apart)
    sender = Client(scene.sessions, version, alpn=None if version == 6 else b"smp/1")
    command = c.Send(False, b"hello")
    corr_id = bytes(range(24))
    sender.send(sender.transmission(command, scene.ids.sender_id, corr_id=corr_id))
    scene.store.fail("the disk is full")
    scene.clock.advance(10)
    (answer,) = scene.all(sender)
    assert (answer.corr_id, answer.entity_id) == (corr_id, scene.ids.sender_id)
    assert isinstance(answer.message, m.Err)


def test_the_commands_of_a_block_wait_together(apart: bool) -> None:
    scene = Scene(apart)
    recipient = scene.recipient
    recipient.send(
        recipient.transmission(c.Ping()),
        recipient.transmission(c.Key(key().public), scene.ids.recipient_id, scene.key),
    )
    assert scene.answers(recipient) == []
    scene.store.fail("the disk is full")
    scene.clock.advance(10)
    pong, error = scene.answers(recipient)
    assert pong == m.Pong()
    assert error == FULL
