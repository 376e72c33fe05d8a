"""Records as bytes: what goes in comes out, and anything else is a parse error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, strategies as st

from smpd.queues import Message, Queue
from smpd.stores import records as r
from smpd.stores.interface import Notification, Service
from tests.smpd.stores.arbitrary import (
    links,
    messages,
    notifications,
    notifiers,
    queues,
    services,
)
from tests.smpd.stores.records import NOW, new_queue
from tests.txsimplex.smp.strategies import mutated
from txsimplex.encoding import ParseError, Reader, whole
from txsimplex.smp.commands import Role

Encoding = tuple[st.SearchStrategy[Any], Callable[[Any], bytes], Callable[[Reader], Any]]

ENCODINGS: list[Encoding] = [
    (links, r.encode_link, r.read_link),
    (notifiers, r.encode_notifier, r.read_notifier),
    (messages, r.encode_message, r.read_message),
    (notifications, r.encode_notification, r.read_notification),
    (services, r.encode_service, r.read_service),
]


def fields_of(queue: Queue) -> list[object]:
    """What a queue is made of; the messages themselves are apart."""
    left_out = {"messages", "_box", "number"}
    kept = [getattr(queue, one.name) for one in fields(queue) if one.name not in left_out]
    return [*kept, queue.messages.can_write]


@given(st.sampled_from(ENCODINGS), st.data())
def test_what_is_written_is_read(encoding: Encoding, data: st.DataObject) -> None:
    strategy, encode, read = encoding
    record = data.draw(strategy)
    assert whole(encode(record), read) == record


@given(queues)
def test_a_queue_that_is_written_is_read(queue: Queue) -> None:
    read = whole(r.encode_queue(queue), r.read_queue)
    assert fields_of(read) == fields_of(queue)
    assert read.messages.waiting == []


def test_every_field_of_a_queue_is_looked_at() -> None:
    """A field that is added has to be added here and to the encoding."""
    assert {one.name for one in fields(Queue)} == {
        "recipient_id",
        "recipient_keys",
        "secret",
        "sender_id",
        "mode",
        "sender_key",
        "link",
        "notifier",
        "status",
        "blocked",
        "used_on",
        "service_id",
        "messages",
        "number",
        "_box",
    }


@given(st.sampled_from([*ENCODINGS, (queues, r.encode_queue, r.read_queue)]), st.data())
def test_bytes_that_are_no_record_are_a_parse_error(
    encoding: Encoding, data: st.DataObject
) -> None:
    strategy, encode, read = encoding
    content = data.draw(st.one_of(st.binary(max_size=300), mutated(strategy.map(encode))))
    try:
        record = whole(content, read)
    except ParseError:
        return
    # What is accepted is a record: it can be written and read again.
    again = whole(encode(record), read)
    assert encode(again) == encode(record)


def test_an_empty_body_is_not_the_marker_of_the_quota() -> None:
    empty, marker = (Message(b"id", NOW, False, body) for body in (b"", None))
    assert not whole(r.encode_message(empty), r.read_message).is_quota
    assert whole(r.encode_message(marker), r.read_message).is_quota


@pytest.mark.parametrize(
    ("encode", "record"),
    [
        (r.encode_message, Message(bytes(256), NOW, False, b"")),
        (r.encode_message, Message(b"id", NOW, False, bytes(65_536))),
        (r.encode_message, Message(b"id", 1 << 63, False, b"")),
        (r.encode_notification, Notification(NOW, bytes(256), b"")),
        (r.encode_service, Service(b"", Role.NOTIFIER, (b"",) * 256, b"", NOW)),
        (r.encode_queue, new_queue(recipient_id=bytes(256))),
    ],
)
def test_what_does_not_fit_is_refused(encode: Callable[[Any], bytes], record: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(record)


def test_records_can_stand_one_behind_the_other() -> None:
    first, second = Message(b"one", NOW, True, b"1"), Message(b"two", NOW, False, None)
    reader = Reader(r.encode_message(first) + r.encode_message(second))
    assert [r.read_message(reader), r.read_message(reader)] == [first, second]
    reader.finish()
