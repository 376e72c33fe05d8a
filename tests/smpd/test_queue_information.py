"""QUE (docs/spec/smp-wire.md §14.4; smp-server.md §16; smp-conformance.md P)."""

from __future__ import annotations

import base64
import json

from tests.smpd.people import Clock, Person, Recipient, key, new_notifier, new_queue, new_relay
from txsimplex.smp import commands as c, messages as m


def standard(msg_id: bytes) -> str:
    """Base64 as QUE has it."""
    return base64.b64encode(msg_id).decode()


def test_209_a_new_queue() -> None:
    recipient = new_queue(Person(new_relay()))
    assert recipient.information() == {
        "qiSnd": False,
        "qiNtf": False,
        "qiSub": {"qSubThread": "noSub"},
        "qiSize": 0,
    }


def test_without_a_subscription_of_this_connection() -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay))
    expected = {"qiSnd": False, "qiNtf": False, "qiSize": 0}
    assert recipient.information(Person(relay)) == expected
    alone = new_queue(Person(relay), subscribe=False)
    assert alone.information() == expected


def test_210_a_secured_queue_with_a_delivered_message() -> None:
    clock = Clock(1_767_323_045.123)
    relay = new_relay(clock=clock)
    recipient = new_queue(Person(relay))
    private = key()
    recipient.ask(c.Key(private.public))
    new_notifier(recipient)
    for _ in range(2):
        recipient.send(Person(relay), private=private)
    msg_id = recipient.event().msg_id
    assert recipient.information() == {
        "qiSnd": True,
        "qiNtf": True,
        "qiSub": {"qSubThread": "noSub", "qDelivered": standard(msg_id)},
        "qiSize": 2,
        "qiMsg": {
            "msgId": standard(msg_id),
            "msgTs": "2026-01-02T03:04:05Z",
            "msgType": "message",
        },
    }
    recipient.ask(c.Ack(b""))
    assert recipient.information()["qiSub"] == {
        "qSubThread": "noSub",
        "qDelivered": standard(msg_id),
    }


def test_141_the_marker_of_the_quota_counts() -> None:
    relay = new_relay(quota=4, clock=Clock(0))
    person = Person(relay)
    recipient: Recipient = new_queue(person, subscribe=False)
    for _ in range(6):
        recipient.send(person)
    assert recipient.information()["qiSize"] == 5
    for _ in range(4):
        message = recipient.ask(c.Get())
        assert isinstance(message, m.Msg)
        assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    marker = recipient.ask(c.Get())
    assert isinstance(marker, m.Msg)
    assert recipient.information() == {
        "qiSnd": False,
        "qiNtf": False,
        "qiSub": {"qSubThread": "prohibitSub", "qDelivered": standard(marker.msg_id)},
        "qiSize": 1,
        "qiMsg": {
            "msgId": standard(marker.msg_id),
            "msgTs": "1970-01-01T00:00:00Z",
            "msgType": "quota",
        },
    }


def test_a_getter_without_a_message() -> None:
    recipient = new_queue(Person(new_relay()), subscribe=False)
    recipient.ask(c.Get())
    assert recipient.information()["qiSub"] == {"qSubThread": "prohibitSub"}


def test_a_message_that_waits_for_the_connection() -> None:
    person = Person(new_relay())
    recipient = new_queue(person)
    person.full = True
    recipient.send(person)
    assert recipient.information()["qiSub"] == {"qSubThread": "subPending"}


def test_it_is_json_without_spaces() -> None:
    """§16."""
    person = Person(new_relay())
    recipient = new_queue(person, subscribe=False)
    (answer,) = person.batch([recipient.transmission(c.Que())]).answers
    text = answer[answer.index(b"INFO ") + 5 :]
    assert json.loads(text) == {"qiSnd": False, "qiNtf": False, "qiSize": 0}
    assert b" " not in text
