"""Delivery against a model of docs/spec/smp-server.md §5: SUB, GET, ACK, full connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.smpd.people import Person, Recipient, expect, new_queue, new_relay, random
from txsimplex.smp import commands as c, errors, messages as m

CONNECTIONS = st.integers(0, 2)


@dataclass
class Known:
    """What the model says of a connection, and what it is about to be sent."""

    person: Person
    state: str = "none"
    delivered: int | None = None
    ended: bool = False
    expected: list[int] = field(default_factory=list)


class Delivery(RuleBasedStateMachine):
    """One queue, a sender, and three connections that have the recipient's key."""

    @initialize()
    def begin(self) -> None:
        """A new queue, to which nobody is subscribed."""
        self.relay = new_relay()
        self.sender = Person(self.relay)
        self.recipient: Recipient = new_queue(self.sender, subscribe=False)
        self.connections = [Known(Person(self.relay)) for _ in range(3)]
        self.waiting: list[int] = []
        self.ids: dict[int, bytes] = {}
        self.sent = 0

    def subscriber(self) -> Known | None:
        """Who is subscribed, by the model."""
        subscribers = [one for one in self.connections if one.state == "subscribed"]
        assert len(subscribers) <= 1
        return subscribers[0] if subscribers else None

    def first(self) -> int | None:
        """The number of the first message."""
        return self.waiting[0] if self.waiting else None

    def number_of(self, message: m.Message) -> int:
        """Which message it is; the same one always has the same id."""
        assert isinstance(message, m.Msg)
        number = int(self.recipient.body(message))
        assert self.ids.setdefault(number, message.msg_id) == message.msg_id
        return number

    @rule()
    def send(self) -> None:
        """§5.3: delivered only if none was there, to whom nothing is un-acknowledged."""
        self.sent += 1
        assert self.recipient.send(self.sender, b"%d" % self.sent) == m.Ok()
        subscriber = self.subscriber()
        if (
            not self.waiting
            and subscriber is not None
            and subscriber.delivered is None
            and not subscriber.person.full
        ):
            subscriber.delivered = self.sent
            subscriber.expected.append(self.sent)
        self.waiting.append(self.sent)

    @rule(number=CONNECTIONS)
    def sub(self, number: int) -> None:
        """§5.2."""
        known = self.connections[number]
        answer = self.recipient.ask(c.Sub(), known.person)
        if known.state == "getter":
            assert answer == errors.PROHIBITED
            return
        assert answer == m.Sok()
        former = self.subscriber()
        if former is not None and former is not known:
            former.state, former.delivered, former.ended = "none", None, True
        known.state, known.delivered, known.ended = "subscribed", self.first(), False
        if known.delivered is not None:
            known.expected.append(known.delivered)

    @rule(number=CONNECTIONS)
    def get(self, number: int) -> None:
        """§4 GET."""
        known = self.connections[number]
        answer = self.recipient.ask(c.Get(), known.person)
        if known.state == "subscribed":
            assert answer == errors.PROHIBITED
            return
        known.state, known.delivered = "getter", self.first()
        if known.delivered is None:
            assert answer == m.Ok()
        else:
            assert self.number_of(expect(answer, m.Msg)) == known.delivered

    @rule(number=CONNECTIONS, which=st.sampled_from(["delivered", "empty", "other"]))
    def ack(self, number: int, which: str) -> None:
        """§4 ACK."""
        known = self.connections[number]
        msg_id = {"empty": b"", "other": random(24)}.get(which)
        if msg_id is None:
            msg_id = random(24) if known.delivered is None else self.ids[known.delivered]
        answer = self.recipient.ask(c.Ack(msg_id), known.person)
        if known.delivered is None or which == "other":
            assert answer == errors.NO_MSG
            return
        if which == "delivered" and self.first() == known.delivered:
            del self.waiting[0]
        if known.state == "getter":
            known.delivered = None
            assert answer == m.Ok()
            return
        known.delivered = self.first()
        if known.delivered is None:
            assert answer == m.Ok()
        else:
            assert self.number_of(expect(answer, m.Msg)) == known.delivered

    @rule(number=CONNECTIONS)
    def stop_reading(self, number: int) -> None:
        """The connection takes no more."""
        self.connections[number].person.full = True

    @rule(number=CONNECTIONS)
    def go_on_reading(self, number: int) -> None:
        """A subscriber to whom nothing is un-acknowledged now has what there is."""
        known = self.connections[number]
        known.person.full = False
        self.relay.ready(known.person.peer)
        if known.state == "subscribed" and known.delivered is None and self.waiting:
            known.delivered = self.waiting[0]
            known.expected.append(self.waiting[0])

    @rule(number=CONNECTIONS)
    def leave(self, number: int) -> None:
        """Another connection takes its place."""
        self.connections[number].person.leave()
        self.connections[number] = Known(Person(self.relay))

    @rule()
    def round_of_events(self) -> None:
        """Who was subscribed and is not is told, unless it takes no more."""
        before = [list(known.person.events) for known in self.connections]
        self.relay.send_events()
        for known, events in zip(self.connections, before, strict=True):
            new = known.person.events[len(events) :]
            told = known.ended and not known.person.full
            assert [type(one.message) for one in new] == ([m.End] if told else [])
            del known.person.events[len(events) :]
            known.ended = known.ended and not told

    @invariant()
    def every_connection_got_what_it_should(self) -> None:
        """And nothing else."""
        for known in self.connections:
            messages = [message for _, message in known.person.all_events()]
            got = [self.number_of(expect(message, m.Msg)) for message in messages]
            assert got == known.expected
            known.expected.clear()

    @invariant()
    def the_relay_knows_the_same(self) -> None:
        """As QUE tells it."""
        assert self.recipient.information()["qiSize"] == len(self.waiting)
        for known in self.connections:
            subscription = known.person.peer.subscriptions.get(self.recipient.recipient_id)
            if subscription is None:
                assert known.state == "none"
            else:
                assert subscription.getter is (known.state == "getter")
                expected = None if known.delivered is None else self.ids[known.delivered]
                assert subscription.delivered == expected


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(stateful_step_count=30)
