"""Delays against the comparison of times: of deliveries, and of answers to SEND."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from smpd.delays import MOST_LATE, DeliveryDelay, delivery_delay, has_send
from smpd.relay import Relay
from smpd.rules import Rules
from smpd.stores.memory import MemoryStore
from tests.smpd.people import (
    Clock as WallClock,
    Person,
    Recipient,
    key,
    new_queue,
    new_relay,
    random,
)
from tests.smpd.test_forwarding import Sender as ProxiedSender
from tests.smpd.test_waiting_answers import Scene as Waiting
from tests.smpd.wires import Client, Sessions
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import frame

# -- delivery


class Delayed:
    """A queue whose subscriber gets messages after 10 seconds at most; `fraction` of that."""

    def __init__(self) -> None:
        self.fraction = 0.5
        self.clock = Clock()
        delay = DeliveryDelay(10.0, lambda: self.fraction, self.clock)
        self.relay = Relay(MemoryStore(), Rules(), WallClock(), random, delay)
        self.sender = Person(self.relay)
        self.recipient: Recipient = new_queue(Person(self.relay))

    def bodies(self, person: Person | None = None) -> list[bytes]:
        """What the subscriber has got since the last time."""
        found = []
        for entity_id, message in (person or self.recipient.person).all_events():
            assert entity_id == self.recipient.recipient_id
            found.append(self.recipient.body(message))
        return found


def test_a_message_is_delivered_after_a_random_time() -> None:
    for fraction in (0.0, 0.25, 0.999):
        scene = Delayed()
        scene.fraction = fraction
        scene.recipient.send(scene.sender, b"hello")
        if fraction:
            scene.clock.advance(10 * fraction - 0.001)
            assert scene.bodies() == []
        scene.clock.advance(0.001)
        assert scene.bodies() == [b"hello"]


def test_only_the_first_message_is_delayed_and_all_keep_their_order() -> None:
    scene = Delayed()
    for body in (b"one", b"two", b"three"):
        scene.recipient.send(scene.sender, body)
    scene.clock.advance(5)
    (event,) = scene.recipient.person.all_events()
    assert isinstance(event[1], m.Msg)
    assert scene.recipient.body(event[1]) == b"one"
    second = scene.recipient.ask(c.Ack(event[1].msg_id))
    assert scene.recipient.body(second) == b"two"
    assert scene.clock.getDelayedCalls() == []


def test_what_a_subscriber_asks_for_it_gets_at_once_and_once() -> None:
    scene = Delayed()
    scene.recipient.send(scene.sender, b"hello")
    answer = scene.recipient.ask(c.Sub())
    bodies = [scene.recipient.body(answer)] if isinstance(answer, m.Msg) else scene.bodies()
    assert bodies == [b"hello"]
    scene.clock.advance(10)
    assert scene.bodies() == []


def test_another_subscriber_gets_it_instead() -> None:
    scene = Delayed()
    scene.recipient.send(scene.sender, b"hello")
    former, scene.recipient.person = scene.recipient.person, Person(scene.relay)
    scene.recipient.ask(c.Sub())
    scene.recipient.person.all_events()
    scene.clock.advance(10)
    assert former.all_events() == []
    assert scene.bodies() == []


def test_who_is_gone_gets_nothing() -> None:
    scene = Delayed()
    scene.recipient.send(scene.sender, b"hello")
    scene.recipient.person.leave()
    scene.clock.advance(10)
    assert scene.bodies() == []


def test_nothing_comes_from_a_queue_that_was_deleted() -> None:
    scene = Delayed()
    scene.recipient.send(scene.sender, b"hello")
    assert scene.recipient.ask(c.Del()) == m.Ok()
    scene.clock.advance(10)
    assert scene.bodies() == []


def test_times_are_random_and_within_what_is_wanted() -> None:
    clock = Clock()
    delay = delivery_delay(3.0, clock)
    assert delay is not None
    for _ in range(200):
        delay(lambda: None)
    times = sorted(call.getTime() for call in clock.getDelayedCalls())
    assert 0 <= times[0] < 0.5 < 2.5 < times[-1] <= 3.0
    assert len(set(times)) == 200
    assert delivery_delay(0.0, clock) is None


# -- answers


class Late:
    """A relay that answers SEND after two seconds."""

    def __init__(self, apart: bool, relay: Relay | None = None) -> None:
        self.clock = Clock()
        self.relay = relay or new_relay()
        self.sessions = Sessions(self.relay, self.clock, None, apart, 2.0)
        self.recipient, self.sender = Client(self.sessions), Client(self.sessions)
        self.key = key()
        new = c.New(self.key.public, key(Algorithm.X25519).public, None, True)
        self.recipient.send(self.recipient.transmission(new, b"", self.key))
        (ids,) = self.answers(self.recipient)
        assert isinstance(ids, m.Ids)
        self.ids = ids

    def answers(self, client: Client | None = None) -> list[m.Message | Error]:
        """What has come, of all blocks."""
        blocks = (client or self.sender).received()
        return [one.message for block in blocks for one in block]

    def send(self, sender_id: bytes | None = None) -> None:
        """A message, to the queue if no other is named."""
        sender_id = self.ids.sender_id if sender_id is None else sender_id
        self.sender.send(self.sender.transmission(c.Send(False, b"hello"), sender_id))


@pytest.fixture(params=[False, True], ids=["one process", "an edge"])
def apart(request: pytest.FixtureRequest) -> bool:
    """Whether there is a channel between sessions and relay."""
    found: bool = request.param
    return found


@pytest.mark.parametrize("known", [True, False])
def test_a_send_is_answered_after_that_time_whatever_the_answer(apart: bool, known: bool) -> None:
    scene = Late(apart)
    scene.send(None if known else random(24))
    scene.clock.advance(1.999)
    assert scene.answers() == []
    scene.clock.advance(0.001)
    assert scene.answers() == [m.Ok() if known else m.Err(errors.AUTH)]


def test_it_is_delivered_at_once(apart: bool) -> None:
    scene = Late(apart)
    scene.send()
    (event,) = scene.answers(scene.recipient)
    assert isinstance(event, m.Msg)


def test_others_do_not_wait(apart: bool) -> None:
    scene = Late(apart)
    scene.send()
    scene.sender.send(scene.sender.transmission(c.Ping(), b""))
    assert scene.answers() == [m.Pong()]


def test_each_send_has_its_own_time(apart: bool) -> None:
    scene = Late(apart)
    scene.send()
    scene.clock.advance(1.5)
    scene.send()
    scene.clock.advance(0.5)
    assert scene.answers() == [m.Ok()]
    scene.clock.advance(1.5)
    assert scene.answers() == [m.Ok()]


def test_who_waits_for_too_many_answers_is_not_read_from(apart: bool) -> None:
    scene = Late(apart, new_relay(quota=10 * MOST_LATE))
    for _ in range(MOST_LATE):
        scene.send()
    assert not scene.sender.wire.reading
    scene.clock.advance(2)
    assert scene.answers() == [m.Ok()] * MOST_LATE
    assert scene.sender.wire.reading


def test_a_stop_gives_all_answers(apart: bool) -> None:
    scene = Late(apart)
    scene.send()
    scene.sessions.conversations.settle()
    assert scene.answers() == [m.Ok()]
    assert scene.clock.getDelayedCalls() == []


def test_nothing_is_left_of_a_client_that_is_gone(apart: bool) -> None:
    scene = Late(apart)
    scene.send()
    scene.sender.leave()
    assert scene.clock.getDelayedCalls() == []


@pytest.mark.parametrize(("command", "waits"), [(c.Send(False, b"hello"), True), (c.Lget(), False)])
def test_a_send_that_came_by_way_of_a_proxy_is_one_too(command: c.Command, waits: bool) -> None:
    sender = ProxiedSender(Person(new_relay()))
    proxy = sender.proxy
    corr_id, nonce = random(24), random(24)
    content = frame([sender.inner(command, random(24), None, corr_id)])
    rfwd = sender.rfwd(content, corr_id, nonce)
    sent = proxy.transmission(rfwd, b"", None, corr_id=nonce)
    items = proxy.relay.open_forwarded(proxy.peer, proxy.framing.read_commands(frame([sent])))
    assert has_send(items) is waits


@pytest.mark.parametrize(("commits_at", "answered_at"), [(1.0, 2.0), (3.0, 3.0)])
def test_the_store_and_the_time_are_both_waited_for(
    apart: bool, commits_at: float, answered_at: float
) -> None:
    scene = Waiting(apart)
    scene.sessions.conversations.answer_time = 2.0
    scene.send()
    scene.clock.advance(commits_at)
    scene.store.commit()
    scene.clock.advance(0)
    if answered_at > commits_at:
        assert scene.answers(scene.sender) == []
        scene.clock.advance(answered_at - commits_at)
    assert scene.answers(scene.sender) == [m.Ok()]
