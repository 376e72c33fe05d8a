"""SUB, GET, ACK and delivery (docs/spec/smp-server.md §4, §5; smp-conformance.md F, H, I)."""

from __future__ import annotations

import pytest

from smpd.stores.interface import Store
from tests.smpd.people import Person, Recipient, expect, new_queue, new_relay, random
from txsimplex.smp import commands as c, errors, messages as m


@pytest.fixture
def recipient() -> Recipient:
    """Subscribed to a new queue."""
    return new_queue(Person(new_relay()))


@pytest.fixture
def sender(recipient: Recipient) -> Person:
    """Another connection."""
    return Person(recipient.person.relay)


def end_events(person: Person) -> list[bytes]:
    """Of which queues a round tells `person` that others have them now."""
    person.relay.send_events()
    ended = []
    for entity_id, message in person.all_events():
        assert message == m.End()
        ended.append(entity_id)
    return ended


# -- another relay on the same store has taken the subscription, and nothing was heard of it yet


def take_all(patch: pytest.MonkeyPatch, store: Store) -> None:
    """Another relay has the subscribers of all queues."""
    patch.setattr(store, "shared", True)
    patch.setattr(store, "is_ours", lambda queue: False)


def test_an_ack_is_refused_when_another_relay_has_the_queue(
    recipient: Recipient, sender: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """§5.2: from the moment of the other's SUB on."""
    recipient.send(sender)
    message = recipient.event()
    with monkeypatch.context() as patched:
        take_all(patched, recipient.person.relay.store)
        assert recipient.ask(c.Ack(message.msg_id)) == errors.NO_MSG
    assert recipient.information()["qiSize"] == 1
    assert end_events(recipient.person) == [recipient.recipient_id]


def test_nothing_is_delivered_when_another_relay_has_the_queue(
    recipient: Recipient, sender: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        take_all(patched, recipient.person.relay.store)
        recipient.send(sender)
        assert end_events(recipient.person) == [recipient.recipient_id]
    assert expect(recipient.ask(c.Sub()), m.Sok) is not None
    assert recipient.body(recipient.event())


def test_who_asks_with_get_has_no_subscription_to_lose(
    sender: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipient = new_queue(Person(sender.relay), subscribe=False)
    recipient.send(sender)
    take_all(monkeypatch, sender.relay.store)
    message = expect(recipient.ask(c.Get()), m.Msg)
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()


# -- answers that became errors, since a shared store failed


def test_who_was_told_an_error_has_the_first_message_once_more(
    recipient: Recipient, sender: Person
) -> None:
    """Its ACK may have had an effect or not: it does not know."""
    recipient.send(sender, b"one")
    recipient.send(sender, b"two")
    first = recipient.event()
    relay = recipient.person.relay
    second = expect(recipient.ask(c.Ack(first.msg_id)), m.Msg)
    relay.answers_lost(recipient.recipient_id)
    assert recipient.event().msg_id == second.msg_id
    assert recipient.ask(c.Ack(second.msg_id)) == m.Ok()
    relay.answers_lost(recipient.recipient_id)
    assert recipient.person.events == []
    recipient.send(sender, b"three")
    assert recipient.body(recipient.event()) == b"three"
    relay.answers_lost(random(24))
    assert recipient.person.events == []


def test_who_has_subscribed_since_has_lost_no_answer(recipient: Recipient, sender: Person) -> None:
    """An answer to the former subscriber became an error after another had taken the queue."""
    recipient.send(sender)
    recipient.send(sender)
    message = recipient.event()
    expect(recipient.ask(c.Ack(message.msg_id)), m.Msg)
    another = Person(recipient.person.relay)
    relay = recipient.person.relay
    assert expect(recipient.ask(c.Sub(), another), m.Sok) is not None
    first = len(another.events)
    relay.answers_lost(recipient.recipient_id)
    assert len(another.events) == first


# -- ACK


def test_086_a_message_is_acknowledged_once(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = recipient.event()
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    assert recipient.ask(c.Ack(message.msg_id)) == errors.NO_MSG
    assert recipient.information()["qiSize"] == 0


def test_112_the_next_message_answers_ack(recipient: Recipient, sender: Person) -> None:
    for body in (b"one", b"two", b"three"):
        recipient.send(sender, body)
    message = recipient.event()
    assert recipient.body(message) == b"one"
    assert recipient.person.events == []
    for body in (b"two", b"three"):
        message = expect(recipient.ask(c.Ack(message.msg_id)), m.Msg)
        assert recipient.body(message) == body
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    recipient.send(sender, b"four")
    assert recipient.body(recipient.event()) == b"four"


def test_ack_without_a_message(recipient: Recipient, sender: Person) -> None:
    assert recipient.ask(c.Ack(random(24))) == errors.NO_MSG
    assert recipient.ask(c.Ack(b"")) == errors.NO_MSG
    recipient.send(sender)
    assert recipient.ask(c.Ack(random(24)), sender) == errors.NO_MSG
    assert recipient.ask(c.Ack(b""), sender) == errors.NO_MSG


def test_another_id_keeps_the_delivered_mark(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = recipient.event()
    assert recipient.ask(c.Ack(random(24))) == errors.NO_MSG
    assert recipient.ask(c.Ack(message.msg_id[:23])) == errors.NO_MSG
    assert recipient.information()["qiSize"] == 1
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()


def test_an_empty_id_brings_the_same_message_again(recipient: Recipient, sender: Person) -> None:
    """§4 ACK: it matches any delivered message and deletes none."""
    recipient.send(sender, b"one")
    recipient.send(sender, b"two")
    message = recipient.event()
    for _ in range(2):
        assert recipient.ask(c.Ack(b"")) == message
    assert sender.relay.counters.messages_received == 0
    assert recipient.information()["qiSize"] == 2
    assert recipient.body(recipient.ask(c.Ack(message.msg_id))) == b"two"


def test_an_empty_id_of_a_getter(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(b""), sender) == m.Ok()
    assert recipient.ask(c.Ack(message.msg_id), sender) == errors.NO_MSG
    assert recipient.information()["qiSize"] == 1


def test_acknowledgements_are_counted(recipient: Recipient, sender: Person) -> None:
    """§14: messages really deleted, and how."""
    counters = sender.relay.counters
    recipient.send(sender, notify=True)
    recipient.send(sender)
    first = recipient.event()
    second = expect(recipient.ask(c.Ack(first.msg_id)), m.Msg)
    assert (counters.messages_received, counters.messages_received_notify) == (1, 1)
    assert expect(recipient.ask(c.Get(), sender), m.Msg) == second
    assert recipient.ask(c.Ack(second.msg_id), sender) == m.Ok()
    assert (counters.messages_received, counters.messages_received_get) == (2, 1)
    assert recipient.ask(c.Ack(second.msg_id)) == m.Ok()
    assert (counters.messages_received, counters.messages_received_notify) == (2, 1)


# -- SUB


def test_118_sub_brings_the_waiting_message() -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay), subscribe=False)
    recipient.send(Person(relay))
    outcome = recipient.person.batch([recipient.transmission(c.Sub())])
    assert recipient.person.received(outcome.answers) == [m.Sok()]
    (message,) = recipient.person.received(outcome.messages)
    assert recipient.body(message) == b"hello"
    assert recipient.person.batches == []
    assert relay.counters.subscriptions == 1


def test_sub_of_an_empty_queue(recipient: Recipient) -> None:
    person = Person(recipient.person.relay)
    assert recipient.ask(c.Sub(), person) == m.Sok()
    assert person.events == []
    assert person.relay.counters.subscriptions == 0


@pytest.mark.parametrize("version", [6, 15])
def test_sub_at_older_versions(version: int) -> None:
    recipient = new_queue(Person(new_relay(), version))
    assert recipient.ask(c.Sub()) == m.Ok()


def test_117_127_sub_again_brings_the_message_again(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = recipient.event()
    counters = sender.relay.counters
    for times in (1, 2):
        assert recipient.ask(c.Sub()) == m.Sok()
        assert recipient.event() == message
        assert counters.subscriptions_duplicate == times
    assert counters.subscriptions == 0
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()


def test_sub_again_clears_the_delivered_mark(recipient: Recipient, sender: Person) -> None:
    """§5.2: after it the head counts as delivered, if there is one."""
    recipient.send(sender)
    message = recipient.event()
    assert expect(recipient.ask(c.Get(), sender), m.Msg) == message
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()
    assert recipient.ask(c.Sub()) == m.Sok()
    assert recipient.ask(c.Ack(message.msg_id)) == errors.NO_MSG
    recipient.send(sender, b"next")
    assert recipient.body(recipient.event()) == b"next"


def test_114_115_116_another_connection_takes_over(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = recipient.event()
    second = Person(sender.relay)
    assert recipient.ask(c.Sub(), second) == m.Sok()
    assert recipient.event(second) == message
    assert recipient.ask(c.Ack(message.msg_id)) == errors.NO_MSG
    assert end_events(recipient.person) == [recipient.recipient_id]
    assert end_events(second) == []
    assert recipient.ask(c.Ack(message.msg_id), second) == m.Ok()
    recipient.send(sender, b"next")
    assert recipient.body(recipient.event(second)) == b"next"
    assert recipient.person.events == []
    counters = sender.relay.counters
    assert (counters.subscriptions_ended, counters.subscriptions_ended_batches) == (1, 1)


def test_the_former_subscriber_gets_nothing_before_its_end_is_sent(
    recipient: Recipient, sender: Person
) -> None:
    """§5.2: its entry goes at once, END with the next round."""
    assert recipient.ask(c.Sub(), second := Person(sender.relay)) == m.Sok()
    recipient.send(sender)
    assert recipient.person.events == []
    assert len(second.events) == 1
    assert "qiSub" not in recipient.information()


def test_a_subscription_can_be_taken_back(recipient: Recipient, sender: Person) -> None:
    second = Person(sender.relay)
    assert recipient.ask(c.Sub(), second) == m.Sok()
    assert recipient.ask(c.Sub()) == m.Sok()
    assert end_events(second) == [recipient.recipient_id]
    assert recipient.person.events == [], "END is true no more"
    recipient.send(sender)
    assert recipient.body(recipient.event()) == b"hello"


def test_113_many_queues_change_the_connection() -> None:
    relay = new_relay()
    first, second, third = (Person(relay) for _ in range(3))
    recipients = [new_queue(first) for _ in range(50)]
    for person, former in ((second, first), (third, second)):
        for recipient in recipients:
            assert recipient.ask(c.Sub(), person) == m.Sok()
        assert sorted(end_events(former)) == sorted(one.recipient_id for one in recipients)
    assert end_events(third) == []


def test_a_subscriber_that_left_is_forgotten(recipient: Recipient, sender: Person) -> None:
    """§2: nobody is told, and un-acknowledged messages stay."""
    recipient.send(sender)
    message = recipient.event()
    recipient.person.leave()
    recipient.send(sender, b"next")
    second = Person(sender.relay)
    assert recipient.ask(c.Sub(), second) == m.Sok()
    assert recipient.event(second) == message
    sender.relay.send_events()
    assert recipient.person.events == []
    assert sender.relay.counters.subscriptions_ended == 0


def test_a_former_subscriber_that_leaves_ends_nothing(recipient: Recipient, sender: Person) -> None:
    second = Person(sender.relay)
    assert recipient.ask(c.Sub(), second) == m.Sok()
    recipient.person.leave()
    recipient.send(sender)
    assert recipient.body(recipient.event(second)) == b"hello"
    sender.relay.send_events()
    assert recipient.person.events == []
    assert sender.relay.counters.subscriptions_ended == 0


def test_122_a_message_comes_before_the_ok_of_its_sender(recipient: Recipient) -> None:
    """§2.2 (c): the event is sent before the answers of the block are."""
    person = recipient.person
    sent = person.transmission(c.Send(False, b"to myself"), recipient.sender_id)
    outcome = person.batch([sent])
    assert recipient.body(recipient.event()) == b"to myself"
    assert person.received(outcome.answers) == [m.Ok()]


def test_123_two_senders() -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay))
    senders = [Person(relay), Person(relay)]
    for number in range(50):
        bodies = [b"%d %d" % (number, one) for one in range(2)]
        for sender, body in zip(senders, bodies, strict=True):
            assert recipient.send(sender, body) == m.Ok()
        first = recipient.event()
        second = expect(recipient.ask(c.Ack(first.msg_id)), m.Msg)
        assert [recipient.body(first), recipient.body(second)] == bodies
        assert recipient.ask(c.Ack(second.msg_id)) == m.Ok()


# -- GET


def test_129_get_answers_with_the_message() -> None:
    relay = new_relay()
    person = Person(relay)
    recipient = new_queue(person, subscribe=False)
    assert recipient.ask(c.Get()) == m.Ok()
    assert relay.counters.messages_got_none == 1
    recipient.send(Person(relay))
    assert person.events == []
    message = expect(recipient.ask(c.Get()), m.Msg)
    assert recipient.body(message) == b"hello"
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    assert recipient.ask(c.Get()) == m.Ok()
    assert (relay.counters.messages_got, relay.counters.messages_got_none) == (1, 2)


def test_get_again_is_counted_apart() -> None:
    """§4 GET, §14."""
    relay = new_relay()
    recipient = new_queue(Person(relay), subscribe=False)
    recipient.send(Person(relay))
    message = recipient.ask(c.Get())
    assert recipient.ask(c.Get()) == message
    counters = relay.counters
    assert (counters.messages_got, counters.messages_got_duplicate) == (1, 1)


def test_130_136_sub_and_get_see_the_same_message(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    assert recipient.ask(c.Get(), sender) == recipient.event()
    assert end_events(recipient.person) == []


def test_131_one_connection_does_not_sub_and_get(recipient: Recipient, sender: Person) -> None:
    counters = sender.relay.counters
    assert recipient.ask(c.Get()) == errors.PROHIBITED
    assert counters.messages_got_prohibited == 1
    assert recipient.ask(c.Get(), sender) == m.Ok()
    assert recipient.ask(c.Sub(), sender) == errors.PROHIBITED
    assert counters.subscriptions_prohibited == 1
    recipient.send(sender)
    assert recipient.body(recipient.event()) == b"hello"
    assert sender.events == []


def test_a_getter_is_one_until_it_leaves(recipient: Recipient, sender: Person) -> None:
    """§5.4."""
    assert recipient.ask(c.Get(), sender) == m.Ok()
    recipient.send(sender)
    message = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()
    assert recipient.ask(c.Sub(), sender) == errors.PROHIBITED


def test_a_connection_whose_subscription_ended_may_get(
    recipient: Recipient, sender: Person
) -> None:
    assert recipient.ask(c.Sub(), sender) == m.Sok()
    assert recipient.ask(c.Get()) == m.Ok()


def test_132_a_getter_acknowledges_the_right_id(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender)
    message = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(random(24)), sender) == errors.NO_MSG
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()


def test_133_a_getter_acknowledges_what_the_subscriber_has(
    recipient: Recipient, sender: Person
) -> None:
    recipient.send(sender)
    message = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()
    assert sender.relay.counters.messages_received == 1
    assert sender.relay.counters.messages_received_get == 0


def test_134_a_getter_asks_for_each_message(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender, b"one")
    recipient.send(sender, b"two")
    first = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(first.msg_id), sender) == m.Ok()
    assert recipient.body(recipient.ask(c.Get(), sender)) == b"two"


def test_135_the_subscriber_goes_on_after_the_getter(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender, b"one")
    recipient.send(sender, b"two")
    message = recipient.event()
    recipient.ask(c.Get(), sender)
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()
    assert recipient.body(recipient.ask(c.Ack(message.msg_id))) == b"two"


def test_get_delivers_nothing_by_itself(recipient: Recipient, sender: Person) -> None:
    recipient.person.leave()
    assert recipient.ask(c.Get(), sender) == m.Ok()
    recipient.send(Person(sender.relay))
    assert sender.events == []


# -- delivery to a connection that takes no more


def test_a_full_connection_gets_its_message_later(recipient: Recipient, sender: Person) -> None:
    """§5.3."""
    person = recipient.person
    person.full = True
    assert recipient.send(sender, b"one") == m.Ok()
    assert recipient.send(sender, b"two") == m.Ok()
    assert person.events == []
    assert recipient.information()["qiSub"] == {"qSubThread": "subPending"}
    assert recipient.ask(c.Ack(b"")) == errors.NO_MSG
    person.full = False
    person.relay.ready(person.peer)
    message = recipient.event()
    assert recipient.body(message) == b"one"
    assert person.events == []
    assert recipient.information()["qiSub"] == {
        "qSubThread": "noSub",
        "qDelivered": recipient.information()["qiMsg"]["msgId"],  # type: ignore[index]
    }
    assert recipient.body(recipient.ask(c.Ack(message.msg_id))) == b"two"


def test_ready_stops_when_the_connection_is_full_again() -> None:
    relay = new_relay()
    person = Person(relay)
    recipients = [new_queue(person) for _ in range(4)]
    person.full = True
    for recipient in recipients:
        recipient.send(Person(relay))
    relay.ready(person.peer)
    assert person.events == []

    sent = []
    for room in (2, 1, 5, 5):
        person.full, person.room = False, room
        relay.ready(person.peer)
        sent.append(len(person.all_events()))
    assert sent == [2, 1, 1, 0]


def test_a_waiting_message_that_was_acknowledged_elsewhere_is_not_sent(
    recipient: Recipient, sender: Person
) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender)
    message = expect(recipient.ask(c.Get(), sender), m.Msg)
    assert recipient.ask(c.Ack(message.msg_id), sender) == m.Ok()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []
    assert recipient.send(sender, b"next") == m.Ok()
    assert recipient.body(recipient.event()) == b"next"


def test_a_waiting_message_that_expired_is_not_sent(recipient: Recipient, sender: Person) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender, b"one")
    queue = person.relay.store.by_recipient(recipient.recipient_id)
    assert queue is not None
    assert person.relay.store.expire(queue, float("inf")) == 1
    recipient.send(sender, b"two")
    person.full = False
    person.relay.ready(person.peer)
    assert recipient.body(recipient.event()) == b"two"
    assert person.events == []


def test_a_waiting_message_of_a_deleted_queue_is_not_sent(
    recipient: Recipient, sender: Person
) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender)
    assert recipient.ask(c.Del(), sender) == m.Ok()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []


def test_a_waiting_message_of_its_own_deleted_queue_is_not_sent(
    recipient: Recipient, sender: Person
) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender)
    assert recipient.ask(c.Del()) == m.Ok()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []


def test_a_waiting_message_goes_to_who_took_over(recipient: Recipient, sender: Person) -> None:
    person, second = recipient.person, Person(sender.relay)
    person.full = True
    recipient.send(sender)
    assert recipient.ask(c.Sub(), second) == m.Sok()
    assert recipient.body(recipient.event(second)) == b"hello"
    assert person.peer.waiting == set()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []


def test_a_waiting_message_is_asked_for_by_sub(recipient: Recipient, sender: Person) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender)
    assert recipient.ask(c.Sub()) == m.Sok()
    message = recipient.event()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []
    assert recipient.information()["qiSub"]["qSubThread"] == "noSub"  # type: ignore[index]
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()


def test_a_connection_that_left_gets_nothing(recipient: Recipient, sender: Person) -> None:
    person = recipient.person
    person.full = True
    recipient.send(sender)
    person.leave()
    person.full = False
    person.relay.ready(person.peer)
    assert person.events == []


# -- rounds of events


def test_events_go_out_newest_first() -> None:
    """§5.2."""
    relay = new_relay()
    first, second = Person(relay), Person(relay)
    recipients = [new_queue(first) for _ in range(300)]
    for recipient in recipients:
        recipient.ask(c.Sub(), second)
    first.batches.clear()
    assert end_events(first) == [one.recipient_id for one in reversed(recipients)]
    assert first.batches == [300]
    counters = relay.counters
    assert (counters.subscriptions_ended, counters.subscriptions_ended_batches) == (300, 2)
    assert end_events(first) == []


def test_events_wait_for_a_full_connection(recipient: Recipient, sender: Person) -> None:
    person = recipient.person
    other = new_queue(Person(sender.relay))
    for one in (recipient, other):
        assert one.ask(c.Sub(), sender) == m.Sok()
    person.full = True
    assert end_events(person) == []
    assert other.person.all_events() == [(other.recipient_id, m.End())]
    person.full = False
    assert end_events(person) == [recipient.recipient_id]


def test_events_of_a_connection_that_left_are_dropped(recipient: Recipient, sender: Person) -> None:
    assert recipient.ask(c.Sub(), sender) == m.Sok()
    recipient.person.leave()
    sender.relay.send_events()
    assert recipient.person.events == []
    assert sender.relay.counters.subscriptions_ended == 0


def test_126_a_batch_of_subscriptions_brings_every_message_once() -> None:
    relay = new_relay()
    first, second, sender = Person(relay), Person(relay), Person(relay)
    recipients = [new_queue(first) for _ in range(20)]
    for recipient in recipients[::2]:
        recipient.send(sender, recipient.recipient_id)
    outcome = second.batch([one.transmission(c.Sub(), second) for one in recipients])
    assert second.received(outcome.answers) == [m.Sok()] * 20
    assert len(outcome.messages) == 10
    for recipient, message in zip(recipients[::2], outcome.messages, strict=True):
        (received,) = second.received([message])
        assert recipient.body(received) == recipient.recipient_id
