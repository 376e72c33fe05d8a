"""What clients are told when the store fails, and that nothing else happens then.

A command whose store fails is answered ``STORE`` with the store's text, from
verification (docs/spec/smp-server.md §3) as from execution (§6).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from smpd.relay import Relay
from smpd.stores.interface import Store, StoreError
from smpd.stores.memory import MemoryStore
from tests.smpd.people import (
    Clock,
    Person,
    Recipient,
    Subscriber,
    expect,
    key,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Error

DATA = LinkData(b"fixed", b"user")
FAILURE = errors.store_error("the disk is full")


class FailingStore:
    """A store in memory of which methods fail while they are named in `failing`."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.failing: set[str] = set()
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in {"noted", "committed", "failure", "unsafe", "refused"}:
            # What waits for a disk is in test_waiting_answers.
            return getattr(self.memory, name)
        if name == "shared" or name.startswith("claim_"):
            # No claim of what was found fails (`smpd.stores.interface`).
            return getattr(self.memory, name)
        self.called.add(name)
        if name in self.failing:
            return self._fail
        return getattr(self.memory, name)

    def _fail(self, *arguments: object) -> None:
        raise StoreError("the disk is full")


@dataclass
class Scene:
    """A relay with a queue that has everything, and the people around it."""

    store: FailingStore = field(default_factory=FailingStore)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.relay: Relay = new_relay(
            cast(Store, self.store), self.clock, expire_on_send=True, quota=3
        )
        self.person = Person(self.relay)
        self.other = Person(self.relay)
        self.service = Person(self.relay, service=Role.NOTIFIER)
        self.second_service = Person(
            self.relay, service=Role.NOTIFIER, fingerprint=self.service.fingerprint
        )
        self.sender_key = key()
        self.recipient: Recipient = new_queue(self.person)
        self.contact: Recipient = new_queue(self.person, QueueMode.CONTACT)
        self.notifier = new_notifier(self.recipient)
        self.contact_notifier = new_notifier(self.contact)
        self.contact_link, self.link = random(24), random(24)
        for recipient, link_id in ((self.contact, self.contact_link), (self.recipient, self.link)):
            assert recipient.ask(c.Lset(link_id, DATA)) == m.Ok()
        assert self.contact_notifier.nsub(self.service) == m.Sok(self.service.service_id)
        assert self.notifier.nsub(self.other) == m.Sok()
        self.clock.now += 86400

    def state(self) -> list[object]:
        """All that a command may change, in a form that can be compared."""
        queues: list[object] = []
        for recipient in (self.recipient, self.contact):
            queue = self.store.memory.by_recipient(recipient.recipient_id)
            if queue is None:
                queues.append(None)
                continue
            copied = copy.deepcopy(queue)
            queues.append(
                {
                    name: getattr(copied, name)
                    for name in queue.__slots__
                    # The day of use is noted before a command is tried (§3.1).
                    if name not in ("_box", "used_on")
                }
            )
        people: list[object] = []
        for one in (self.person, self.other, self.service, self.second_service):
            peer = one.peer
            people.append(
                (
                    {
                        entity_id: (each.getter, each.delivered, each.waits)
                        for entity_id, each in peer.subscriptions.items()
                    },
                    set(peer.notifier_ids),
                    peer.service_notifiers,
                    peer.service_subscribed,
                    set(peer.waiting),
                    list(one.events),
                )
            )
        store = self.store.memory
        counts = (store.queue_count(), store.notifier_count(self.service.service_id))
        return [queues, people, counts, copy.copy(self.relay.counters)]


Step = Callable[[Scene], m.Message | Error]


def send(scene: Scene) -> m.Message | Error:
    """A message to the queue with a one-time link."""
    return scene.recipient.send(scene.other, private=scene.sender_key, notify=True)


def signed(scene: Scene, command: c.Command, entity_id: bytes) -> m.Message | Error:
    """A sender's or link client's command."""
    return scene.other.ask(command, entity_id, scene.sender_key)


def new(scene: Scene) -> m.Message | Error:
    """A queue with a notifier."""
    private, notifier = key(), Subscriber.new()
    command = c.New(private.public, key(Algorithm.X25519).public)
    command.request = c.QueueRequest(QueueMode.MESSAGING)
    command.notifier = c.NotifierRequest(*notifier.request)
    return scene.person.ask(command, b"", private)


def secured(scene: Scene) -> None:
    """The sender's key is set; the link is there still."""
    assert scene.recipient.ask(c.Key(scene.sender_key.public)) == m.Ok()


def secured_without_link(scene: Scene) -> None:
    """The sender's key is set, and the link is gone."""
    secured(scene)
    assert scene.recipient.ask(c.Ldel()) == m.Ok()


def with_messages(scene: Scene) -> None:
    """Two messages wait, of which the first was delivered."""
    for _ in range(2):
        assert scene.recipient.send(scene.person) == m.Ok()


def first_id(scene: Scene) -> bytes:
    """The id of the message that is first."""
    queue = scene.store.memory.by_recipient(scene.recipient.recipient_id)
    assert queue is not None
    return queue.messages.waiting[0].msg_id


def nothing(scene: Scene) -> None:
    """The scene as it is."""


STEPS: dict[str, tuple[Callable[[Scene], None], Step]] = {
    "NEW": (nothing, new),
    "SUB": (with_messages, lambda s: s.recipient.ask(c.Sub(), s.other)),
    "SUB again": (with_messages, lambda s: s.recipient.ask(c.Sub())),
    "KEY": (nothing, lambda s: s.recipient.ask(c.Key(s.sender_key.public))),
    "RKEY": (nothing, lambda s: s.contact.ask(c.Rkey([s.contact.private.public]))),
    "LSET": (nothing, lambda s: s.contact.ask(c.Lset(s.contact_link, LinkData(b"fixed", b"x")))),
    "LDEL": (nothing, lambda s: s.contact.ask(c.Ldel())),
    "NKEY": (nothing, lambda s: s.recipient.ask(c.Nkey(*Subscriber.new().request))),
    "NDEL": (nothing, lambda s: s.recipient.ask(c.Ndel())),
    "GET": (with_messages, lambda s: s.recipient.ask(c.Get(), s.other)),
    "ACK": (with_messages, lambda s: s.recipient.ask(c.Ack(first_id(s)))),
    "OFF": (nothing, lambda s: s.recipient.ask(c.Off())),
    "DEL": (with_messages, lambda s: s.recipient.ask(c.Del(), s.other)),
    "QUE": (with_messages, lambda s: s.recipient.ask(c.Que())),
    "SKEY": (
        nothing,
        lambda s: signed(s, c.Skey(s.sender_key.public), s.recipient.sender_id),
    ),
    "LKEY": (nothing, lambda s: signed(s, c.Lkey(s.sender_key.public), s.link)),
    "LGET": (nothing, lambda s: s.other.ask(c.Lget(), s.contact_link)),
    "SEND": (secured_without_link, send),
    "NSUB": (nothing, lambda s: s.notifier.nsub(s.person)),
    "NSUB of a service's": (nothing, lambda s: s.contact_notifier.nsub(s.person)),
    "NSUB by a service": (nothing, lambda s: s.notifier.nsub(s.service)),
    "NSUB by its second session": (
        nothing,
        lambda s: s.notifier.nsub(s.second_service),
    ),
    "NSUB by another service": (
        nothing,
        lambda s: s.contact_notifier.nsub(Person(s.relay, service=Role.NOTIFIER)),
    ),
    "NSUBS": (
        nothing,
        lambda s: s.second_service.ask(
            c.Nsubs(), s.second_service.service_id, s.second_service.service_key
        ),
    ),
}

WITHOUT_ANSWER = {
    ("SEND", "add_notification"),
    ("NSUB by another service", "add_service"),
}
"""Failures that the command survives, or that are not its own."""

CHANGES = {
    # The subscription is there nevertheless (§5.2).
    ("SUB", "head"),
    # The message is removed, and only the next one is missing.
    ("ACK", "head"),
}
"""Failures after which something has changed; tests of their own say what."""


def calls() -> list[tuple[str, str]]:
    """Each command with each method of the store that it calls."""
    found = []
    for name, (prepare, step) in STEPS.items():
        scene = Scene()
        prepare(scene)
        scene.store.called.clear()
        answer = step(scene)
        assert not isinstance(answer, Error), (name, answer)
        found += [(name, method) for method in sorted(scene.store.called)]
    return found


CALLS = calls()


def test_every_method_of_the_store_is_called_by_some_command() -> None:
    rounds = {"close", "expire_all", "expire_notifications", "notifiers_waiting"}
    rounds |= {"queue_count", "set_status", "take_notifications", "unused"}
    assert {method for _, method in CALLS} >= Store.__abstractmethods__ - rounds


@pytest.mark.parametrize(("name", "method"), [one for one in CALLS if one not in WITHOUT_ANSWER])
def test_a_failure_is_answered_and_changes_nothing(name: str, method: str) -> None:
    scene = Scene()
    prepare, step = STEPS[name]
    prepare(scene)
    before = scene.state()
    scene.store.failing = {method}
    assert step(scene) == FAILURE
    scene.store.failing = set()
    if (name, method) in CHANGES:
        return
    assert scene.state() == before
    scene.relay.send_events()
    assert scene.state() == before
    assert not isinstance(step(scene), Error)


def test_the_next_message_is_had_by_acknowledging_again() -> None:
    scene = Scene()
    with_messages(scene)
    first = first_id(scene)
    scene.store.failing = {"head"}
    assert scene.recipient.ask(c.Ack(first)) == FAILURE
    scene.store.failing = set()
    message = expect(scene.recipient.ask(c.Ack(first)), m.Msg)
    assert message.msg_id == first_id(scene) != first


def test_sub_subscribes_although_the_message_is_missing() -> None:
    """§5.2."""
    scene = Scene()
    scene.store.failing = {"head"}
    assert scene.recipient.ask(c.Sub(), scene.other) == FAILURE
    scene.store.failing = set()
    assert scene.recipient.send(scene.person) == m.Ok()
    assert scene.person.events == []
    assert scene.recipient.body(scene.recipient.event(scene.other)) == b"hello"


def test_an_accepted_message_is_ok_whatever_fails_after_it() -> None:
    """Otherwise its sender would send it twice."""
    scene = Scene()
    secured(scene)
    scene.store.failing = {"head", "add_notification", "delete_link", "by_recipient"}
    assert send(scene) == m.Ok()
    scene.store.failing = set()
    scene.recipient.event()
    assert scene.recipient.information()["qiSize"] == 1


def test_link_data_that_could_not_be_deleted_goes_with_the_next_message() -> None:
    """§4 LKEY: errors are ignored."""
    scene = Scene()
    secured(scene)
    scene.store.failing = {"delete_link"}
    assert send(scene) == m.Ok()
    assert scene.store.by_link(scene.link) is not None
    scene.store.failing = set()
    assert send(scene) == m.Ok()
    assert scene.store.by_link(scene.link) is None


def test_a_failed_command_does_not_stop_its_block() -> None:
    scene = Scene()
    scene.store.failing = {"by_recipient"}
    outcome = scene.person.batch(
        [
            scene.person.transmission(c.Ping()),
            scene.recipient.transmission(c.Que()),
            scene.person.transmission(c.Lget(), scene.contact_link),
        ]
    )
    assert scene.person.received(outcome.refused) == [FAILURE]
    pong, link = scene.person.received(outcome.answers)
    assert pong == m.Pong()
    assert link == m.Lnk(scene.contact.sender_id, DATA)
    assert scene.relay.counters.messages_got_auth == 0


# -- outside commands


def test_a_waiting_message_survives_a_failure() -> None:
    """It is sent by the next round of events, if not before."""
    scene = Scene()
    person, recipient = scene.person, scene.recipient
    other = new_queue(person)
    person.full = True
    for one in (recipient, other):
        assert one.send(scene.other) == m.Ok()
    person.full = False
    for method in ("by_recipient", "head"):
        scene.store.failing = {method}
        scene.relay.ready(person.peer)
        scene.relay.send_events()
        assert person.events == []
    scene.store.failing = set()
    scene.relay.send_events()
    sent = {entity_id for entity_id, _ in person.all_events()}
    assert sent == {recipient.recipient_id, other.recipient_id}
    scene.relay.send_events()
    assert person.events == []


def test_a_waiting_message_of_one_that_left_is_not_tried_again() -> None:
    scene = Scene()
    scene.person.full = True
    assert scene.recipient.send(scene.other) == m.Ok()
    scene.person.full = False
    scene.store.failing = {"head"}
    scene.relay.ready(scene.person.peer)
    scene.person.leave()
    scene.store.failing = set()
    scene.relay.send_events()
    assert scene.person.events == []


@pytest.mark.parametrize("method", ["take_notifications", "by_notifier"])
def test_notifications_survive_a_failure(method: str) -> None:
    scene = Scene()
    for recipient in (scene.recipient, scene.contact):
        assert recipient.send(scene.person, notify=True) == m.Ok()
    good = scene.notifier.notifier_id
    real = getattr(scene.store.memory, method)

    def failing(notifier_id: bytes) -> Any:
        if notifier_id != good:
            raise StoreError("the disk is full")
        return real(notifier_id)

    setattr(scene.store, method, failing)
    scene.relay.send_notifications()
    assert [entity_id for entity_id, _ in scene.other.all_events()] == [good]
    assert scene.service.events == []
    setattr(scene.store, method, real)
    scene.relay.send_notifications()
    assert len(scene.service.all_events()) == 1
    assert scene.other.events == []


def test_the_operator_is_told_of_a_failure() -> None:
    scene = Scene()
    scene.store.failing = {"set_status"}
    information = BlockingInformation(BlockingReason.SPAM)
    with pytest.raises(StoreError):
        scene.relay.block_queue(scene.recipient.sender_id, information)
    assert scene.person.events == []
    assert scene.relay.counters.queues_blocked == 0
    scene.store.failing = set()
    assert scene.recipient.send(scene.other) == m.Ok()
