"""Conformance M: short links and the data behind them."""

from __future__ import annotations

import os

import pytest

from tests.conformance.clients import (
    ALGORITHMS,
    Queue,
    Relay,
    ask,
    err,
    make_queue,
    new_id,
    new_key,
    next_message,
    refused,
)
from tests.conformance.numbers import conforms
from tests.conformance.versions import at_versions
from txsimplex.client.queues import sender_id_for
from txsimplex.client.raw import RawClient
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import (
    Key,
    Ldel,
    Lget,
    LinkData,
    LinkRequest,
    Lkey,
    Lset,
    New,
    QueueMode,
    QueueRequest,
    Skey,
)
from txsimplex.smp.messages import Ids, Lnk, Message, Ok

VERSIONS = (15, 16, 17, 18)
MESSAGING, CONTACT = QueueMode.MESSAGING, QueueMode.CONTACT
LARGEST = LinkData(os.urandom(2048), os.urandom(13824))
"""As large as clients make it (smp-wire.md §13)."""


def new_data() -> LinkData:
    """Some data of a link."""
    return LinkData(os.urandom(300), os.urandom(1000))


def changed(data: LinkData) -> LinkData:
    """The same with another user part."""
    return LinkData(data.fixed, os.urandom(800))


async def make_link(
    recipient: SMPClient, mode: QueueMode, data: LinkData | None = None
) -> tuple[Queue, bytes, LinkData]:
    """A queue with a link, the link's id and data."""
    data = data or new_data()
    link_id = new_id() if mode is CONTACT else None
    queue = await make_queue(recipient, mode=mode, link=data, link_id=link_id)
    assert queue.created.link_id is not None
    return queue, queue.created.link_id, data


async def request_new(
    raw: RawClient, request: QueueRequest, corr_id: bytes, key: PrivateKey
) -> Message:
    """The answer to NEW with this request and correlation id."""
    command = New(key.public, new_key(Algorithm.X25519).public, request=request)
    received = await raw.request(command, corr_id=corr_id, key=key)
    assert (received.corr_id, received.entity_id) == (corr_id, b"")
    assert isinstance(received.message, Message)
    return received.message


@conforms(171, 177)
@at_versions(*VERSIONS)
async def test_171_sender_id_that_is_not_of_the_correlation_id(relay: Relay, version: int) -> None:
    raw = await relay.raw(version)
    corr_id, data = new_id(), new_data()
    for mode, link_id in ((MESSAGING, None), (CONTACT, new_id())):
        for wrong in (
            new_id(),
            sender_id_for(new_id()),
            sender_id_for(corr_id)[:-1],
            sender_id_for(corr_id) + b"x",
            b"",
        ):
            request = QueueRequest(mode, LinkRequest(wrong, data, link_id))
            answer = await request_new(raw, request, corr_id, new_key())
            assert answer == err("CMD PROHIBITED")


@at_versions(*VERSIONS)
async def test_172_new_messaging_queue_with_a_link(relay: Relay, version: int) -> None:
    raw = await relay.raw(version)
    link_ids = set()
    for size in (24, 24, 10, 255):
        corr_id = os.urandom(size)
        sender_id = sender_id_for(corr_id)
        request = QueueRequest(MESSAGING, LinkRequest(sender_id, new_data()))
        ids = await request_new(raw, request, corr_id, new_key())
        assert isinstance(ids, Ids)
        assert (ids.sender_id, ids.mode) == (sender_id, MESSAGING)
        assert ids.link_id is not None
        assert len(ids.link_id) == len(ids.recipient_id) == 24
        assert len({ids.sender_id, ids.recipient_id, ids.link_id}) == 3
        link_ids.add(ids.link_id)
    assert len(link_ids) == 4


@at_versions(*VERSIONS)
async def test_172_sender_id_that_is_taken(relay: Relay, version: int) -> None:
    """The same correlation id again would give the same sender id."""
    raw = await relay.raw(version)
    corr_id = new_id()
    request = QueueRequest(MESSAGING, LinkRequest(sender_id_for(corr_id), new_data()))
    assert isinstance(await request_new(raw, request, corr_id, new_key()), Ids)
    assert await request_new(raw, request, corr_id, new_key()) == err("AUTH")


@at_versions(*VERSIONS)
async def test_173_one_time_link_before_securing(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    assert await ask(raw, Lget(), link_id) == err("AUTH")
    data = changed(data)
    assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
    assert await ask(raw, Lkey((key := new_key()).public), link_id, key) == Lnk(
        queue.sender_id, data
    )


@at_versions(*VERSIONS)
async def test_174_lkey_that_is_not_authorised(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    key = new_key()
    command = Lkey(key.public)
    assert await ask(raw, command, link_id) == err("CMD NO_AUTH")
    for wrong_key in (new_key(), queue.key, new_key(Algorithm.ED448), new_key(Algorithm.X25519)):
        assert await ask(raw, command, link_id, wrong_key) == err("AUTH")
    for wrong_id in (queue.recipient_id, queue.sender_id, new_id()):
        assert await ask(raw, command, wrong_id, key) == err("AUTH")
    # None of that has secured the queue.
    assert (await recipient.queue_info(*queue.own))["qiSnd"] is False
    assert await ask(raw, command, link_id, key) == Lnk(queue.sender_id, data)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@at_versions(*VERSIONS)
async def test_175_lkey(relay: Relay, version: int, algorithm: Algorithm) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    data = changed(data)
    await recipient.set_link(*queue.own, link_id, data)
    key, other = new_key(algorithm), new_key(algorithm)
    for _ in range(2):
        assert await ask(raw, Lkey(key.public), link_id, key) == Lnk(queue.sender_id, data)
    assert await ask(raw, Lkey(other.public), link_id, other) == err("AUTH")
    # It has secured the queue, as KEY or SKEY do.
    assert await ask(raw, Skey(key.public), queue.sender_id, key) == Ok()
    assert await ask(raw, Key(other.public), *queue.own) == err("AUTH")
    assert (await recipient.queue_info(*queue.own))["qiSnd"] is True


@at_versions(*VERSIONS)
async def test_175_lkey_after_the_recipient_secured(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    key, other = new_key(), new_key()
    await recipient.secure(*queue.own, key.public)
    assert await ask(raw, Lkey(other.public), link_id, other) == err("AUTH")
    assert await ask(raw, Lkey(key.public), link_id, key) == Lnk(queue.sender_id, data)


@at_versions(*VERSIONS)
async def test_175_first_message_removes_a_one_time_link(relay: Relay, version: int) -> None:
    """smp-server.md §4, LKEY: the first SEND that is accepted after securing does."""
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    await sender.send(queue.sender_id, b"not secured yet")
    key = new_key()
    assert await sender.secure_link(link_id, key) == Lnk(queue.sender_id, data)
    with refused("AUTH"):
        await sender.send(queue.sender_id, b"not signed")
    await sender.secure_link(link_id, key)
    await sender.send(queue.sender_id, b"hello", key=key)
    with refused("AUTH"):
        await sender.secure_link(link_id, key)
    assert (await next_message(recipient, queue)).body == b"not secured yet"


@at_versions(*VERSIONS)
async def test_176_link_of_a_secured_queue(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, MESSAGING)
    key = new_key()
    await recipient.secure_link(link_id, key)
    for new in (data, changed(data)):
        assert await ask(raw, Lset(link_id, new), *queue.own) == err("AUTH")
    assert await ask(raw, Lkey(key.public), link_id, key) == Lnk(queue.sender_id, data)
    assert await ask(raw, Ldel(), *queue.own) == Ok()
    assert await ask(raw, Lkey(key.public), link_id, key) == err("AUTH")
    # The queue is there as before.
    await recipient.send(queue.sender_id, b"hello", key=key)
    assert (await next_message(recipient, queue)).body == b"hello"


@at_versions(*VERSIONS)
async def test_177_new_contact_queue_with_a_link(relay: Relay, version: int) -> None:
    raw = await relay.raw(version)
    # By convention 24 bytes; the relay does not mind.
    for size in (24, 10, 255):
        corr_id, link_id = new_id(), os.urandom(size)
        sender_id = sender_id_for(corr_id)
        request = QueueRequest(CONTACT, LinkRequest(sender_id, new_data(), link_id))
        ids = await request_new(raw, request, corr_id, new_key())
        assert isinstance(ids, Ids)
        assert (ids.sender_id, ids.link_id, ids.mode) == (sender_id, link_id, CONTACT)
        # The link id is taken now.
        corr_id = new_id()
        request = QueueRequest(CONTACT, LinkRequest(sender_id_for(corr_id), new_data(), link_id))
        assert await request_new(raw, request, corr_id, new_key()) == err("AUTH")


@conforms(178, 177)
@at_versions(*VERSIONS)
async def test_178_reading_a_contact_link(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, CONTACT)
    key = new_key()
    assert await ask(raw, Lkey(key.public), link_id, key) == err("AUTH")
    for _ in range(3):
        assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
    for wrong_id in (queue.recipient_id, queue.sender_id, new_id(), link_id[:-1]):
        assert await ask(raw, Lget(), wrong_id) == err("AUTH")


@at_versions(*VERSIONS)
async def test_178_largest_data(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, _ = await make_link(recipient, CONTACT, LARGEST)
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, LARGEST)


@at_versions(*VERSIONS)
async def test_178_contact_queue_that_is_secured(relay: Relay, version: int) -> None:
    """Its link may be read and changed as before."""
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, CONTACT)
    await recipient.secure(*queue.own, (key := new_key()).public)
    await recipient.send(queue.sender_id, b"hello", key=key)
    data = changed(data)
    assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)


@at_versions(*VERSIONS)
async def test_179_changing_a_contact_link(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, first = await make_link(recipient, CONTACT)
    data = changed(first)
    for _ in range(2):
        assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
        assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
    other_id, other_fixed = new_id(), LinkData(os.urandom(300), data.user)
    assert await ask(raw, Lset(other_id, data), *queue.own) == err("AUTH")
    assert await ask(raw, Lset(link_id, other_fixed), *queue.own) == err("AUTH")
    assert await ask(raw, Lset(other_id, other_fixed), *queue.own) == err("AUTH")
    assert await ask(raw, Lset(link_id, changed(data)), queue.recipient_id, new_key()) == err(
        "AUTH"
    )
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
    assert await ask(raw, Lget(), other_id) == err("AUTH")


@at_versions(*VERSIONS)
async def test_180_deleting_a_contact_link(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, _ = await make_link(recipient, CONTACT)
    for _ in range(2):
        assert await ask(raw, Ldel(), *queue.own) == Ok()
        assert await ask(raw, Lget(), link_id) == err("AUTH")
    # Then the queue may have another link, with other data.
    other_id, other = new_id(), new_data()
    assert await ask(raw, Lset(other_id, other), *queue.own) == Ok()
    assert await ask(raw, Lget(), other_id) == Lnk(queue.sender_id, other)
    # With the queue goes its link.
    await recipient.delete(*queue.own)
    assert await ask(raw, Lget(), other_id) == err("AUTH")
    assert await ask(raw, Lset(other_id, other), *queue.own) == err("AUTH")


@pytest.mark.parametrize("creator", [6, 8, 15, 18])
@at_versions(*VERSIONS)
async def test_182_link_of_a_queue_whose_mode_is_not_known(
    relay: Relay, version: int, creator: int
) -> None:
    """Queues of clients that said nothing of a mode."""
    recipient, raw = await relay.connect(creator), await relay.raw(version)
    queue = await make_queue(recipient, mode=None)
    assert queue.created.mode is None
    link_id, data = new_id(), new_data()
    assert await ask(raw, Lget(), link_id) == err("AUTH")
    assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
    data = changed(data)
    assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
    # Once it is secured, it is a queue for messages.
    key = new_key()
    await recipient.secure(*queue.own, key.public)
    assert await ask(raw, Lget(), link_id) == err("AUTH")
    assert await ask(raw, Lset(link_id, data), *queue.own) == err("AUTH")
    assert await ask(raw, Lkey(key.public), link_id, key) == err("AUTH")


@at_versions(*VERSIONS)
async def test_182_contact_queue_created_without_a_link(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient, mode=CONTACT)
    assert queue.created.link_id is None
    link_id, data = new_id(), new_data()
    assert await ask(raw, Lset(link_id, data), *queue.own) == Ok()
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)


@at_versions(*VERSIONS)
async def test_182_link_id_of_another_queue(relay: Relay, version: int) -> None:
    """Here simplexd differs: the reference would give the link to the second queue."""
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue, link_id, data = await make_link(recipient, CONTACT)
    other = await make_queue(recipient, mode=CONTACT)
    assert await ask(raw, Lset(link_id, new_data()), *other.own) == err("AUTH")
    assert await ask(raw, Lget(), link_id) == Lnk(queue.sender_id, data)
