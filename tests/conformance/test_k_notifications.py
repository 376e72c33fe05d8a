"""Conformance K: notifiers and their notifications."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    ALGORITHMS,
    Queue,
    Relay,
    acknowledge,
    ask,
    err,
    make_queue,
    make_secured_queue,
    new_key,
    next_event,
    next_msg,
    no_event,
    refused,
)
from tests.conformance.notifiers import Notifier, make_notifier, next_notification
from tests.conformance.versions import at_versions
from txsimplex.client.smp import Request, SMPClient
from txsimplex.keys import Algorithm
from txsimplex.smp.bodies import SEALED_META_SIZE
from txsimplex.smp.commands import Ndel, Nkey, Nsub, Send
from txsimplex.smp.messages import Deld, End, Nid, Nmsg, Ok, Sok
from txsimplex.smp.transmissions import Received

VERSIONS = (6, 9, 10, 15, 16, 18)


def subscribed(version: int) -> Sok | Ok:
    """The answer to NSUB by a connection that is no service."""
    return Sok() if version >= 16 else Ok()


def deleted(version: int) -> Deld | End:
    """The event about a notifier that is there no more."""
    return Deld() if version >= 10 else End()


async def send(sender: SMPClient, queue: Queue, body: bytes = b"hello") -> None:
    """Sends a message that notifies."""
    await sender.send(queue.sender_id, body, notify=True)


async def is_silent(notified: SMPClient) -> bool:
    """Whether the relay has no notifications and no other events for a connection.

    Those of another queue that come after them show it: what there is goes out together.
    """
    queue = await make_queue(notified, subscribe=False)
    notifier = await make_notifier(notified, queue)
    await notified.subscribe_notifications(*notifier.own)
    for _ in range(2):
        await send(notified, queue)
        await next_notification(notified, notifier)
    return len(notified.events) == 0


async def is_nobodys(client: SMPClient, notifier: Notifier) -> bool:
    """Whether NSUB finds no such notifier."""
    with refused("AUTH"):
        await client.subscribe_notifications(*notifier.own)
    return True


@at_versions(*VERSIONS)
async def test_150_nkey_again_gives_another_id(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    notified = await relay.connect(version)
    queue = await make_queue(recipient)
    key, dh_key = new_key(), new_key(Algorithm.X25519)
    command = Nkey(key.public, dh_key.public)
    ids = []
    for _ in range(2):
        # The answer has the id of the recipient.
        answer = await ask(raw, command, *queue.own)
        assert isinstance(answer, Nid)
        ids.append(Notifier(answer.notifier_id, key, dh_key, answer.dh_key))
    old, new = ids
    assert old.notifier_id != new.notifier_id
    assert len(old.notifier_id) == len(new.notifier_id) == 24
    assert await is_nobodys(notified, old)
    await notified.subscribe_notifications(*new.own)


@at_versions(*VERSIONS)
async def test_150_subscriber_of_the_old_id_is_told(relay: Relay, version: int) -> None:
    recipient, notified = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient, subscribe=False)
    old = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*old.own)
    new = await make_notifier(recipient, queue, key=old.key)
    assert await next_event(notified) == Received(b"", old.notifier_id, deleted(version))
    await send(recipient, queue)
    assert await is_silent(notified)
    await notified.subscribe_notifications(*new.own)
    await next_notification(notified, new)


@at_versions(16, 17, 18)
async def test_151_service_signature_on_an_ordinary_connection(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    notifier = await make_notifier(recipient, await make_queue(recipient))
    service_key = new_key()
    corr_id = b"1" * 24
    authorized = raw.session.framing.authorized(corr_id, notifier.notifier_id, b"NSUB")
    for signature in (service_key.sign(authorized), notifier.key.sign(authorized), bytes(64)):
        transmission = raw.transmission(
            Nsub(),
            corr_id=corr_id,
            entity_id=notifier.notifier_id,
            key=notifier.key,
            service_signature=signature,
        )
        raw.send_transmissions(transmission)
        assert await raw.next_batch() == [Received(corr_id, notifier.notifier_id, err("SERVICE"))]
    assert await ask(raw, Nsub(), *notifier.own) == Sok()


@at_versions(*VERSIONS)
async def test_152_nsub_and_a_notification(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    assert await ask(raw, Nsub(), *notifier.own) == subscribed(version)
    # Once more is no other subscription.
    assert await ask(raw, Nsub(), *notifier.own) == subscribed(version)
    await send(await relay.connect(version), queue)
    message = await next_msg(recipient, queue)
    event = await raw.next_message()
    assert (event.corr_id, event.entity_id) == (b"", notifier.notifier_id)
    assert isinstance(event.message, Nmsg)
    assert notifier.open(event.message)[0] == message.msg_id


@at_versions(*VERSIONS)
async def test_152_notification_for_every_message(relay: Relay, version: int) -> None:
    """In the order of the messages, also those that the recipient has acknowledged."""
    recipient, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    ids = []
    for _ in range(3):
        await send(sender, queue)
        message = await next_msg(recipient, queue)
        ids.append(message.msg_id)
        assert await acknowledge(recipient, queue, message) is None
    notified = await relay.connect(version)
    await notified.subscribe_notifications(*notifier.own)
    assert [(await next_notification(notified, notifier))[0] for _ in ids] == ids
    assert await is_silent(notified)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@ensureDeferred
async def test_152_keys_of_notifiers(relay: Relay, algorithm: Algorithm) -> None:
    recipient, notified = await relay.connect(), await relay.connect()
    queue, sender_key = await make_secured_queue(recipient, algorithm)
    notifier = await make_notifier(recipient, queue, algorithm)
    for other in ALGORITHMS:
        with refused("AUTH"):
            await notified.subscribe_notifications(notifier.notifier_id, new_key(other))
    for wrong_id in (queue.recipient_id, queue.sender_id):
        with refused("AUTH"):
            await notified.subscribe_notifications(wrong_id, notifier.key)
    await notified.subscribe_notifications(*notifier.own)
    await recipient.send(queue.sender_id, b"hello", key=sender_key, notify=True)
    message = await next_msg(recipient, queue)
    assert (await next_notification(notified, notifier))[0] == message.msg_id


@at_versions(*VERSIONS)
async def test_153_message_that_does_not_notify(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    notified = await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    await sender.send(queue.sender_id, b"silent", notify=False)
    assert await is_silent(notified)
    # A later one does, and its notification is the only one.
    await send(sender, queue)
    first = await next_msg(recipient, queue)
    second = await acknowledge(recipient, queue, first)
    assert second is not None
    assert (await next_notification(notified, notifier))[0] == second.msg_id


@ensureDeferred
async def test_153_message_that_is_refused(relay: Relay) -> None:
    recipient, notified = await relay.connect(), await relay.connect()
    queue, _ = await make_secured_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    with refused("AUTH"):
        await send(recipient, queue)
    full = await make_queue(recipient, subscribe=False)
    full_notifier = await make_notifier(recipient, full)
    for _ in range(4):
        await send(recipient, full)
    with refused("QUOTA"):
        await send(recipient, full)
    await notified.subscribe_notifications(*full_notifier.own)
    for _ in range(4):
        await next_notification(notified, full_notifier)
    assert await is_silent(notified)


@at_versions(*VERSIONS)
async def test_154_nsub_by_a_second_connection(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    first, second = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await first.subscribe_notifications(*notifier.own)
    await second.subscribe_notifications(*notifier.own)
    assert await next_event(first) == Received(b"", notifier.notifier_id, End())
    await send(sender, queue)
    message = await next_msg(recipient, queue)
    assert (await next_notification(second, notifier))[0] == message.msg_id
    # And back again.
    await first.subscribe_notifications(*notifier.own)
    assert await next_event(second) == Received(b"", notifier.notifier_id, End())
    await send(sender, queue)
    await next_notification(first, notifier)
    assert await is_silent(second)
    await no_event(first)


@at_versions(*VERSIONS)
async def test_155_ndel(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    sender, notified = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    # In one block, so that there is a notification which has not gone out yet.
    answers = await recipient.send_many(
        [Request(Send(True, b"hello"), queue.sender_id), Request(Ndel(), *queue.own)]
    )
    assert answers == [Ok(), Ok()]
    assert await next_event(notified) == Received(b"", notifier.notifier_id, deleted(version))
    await send(sender, queue)
    assert await is_silent(notified)
    assert await is_nobodys(notified, notifier)
    assert await ask(raw, Ndel(), *queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_155_del_of_the_queue(relay: Relay, version: int) -> None:
    recipient, notified = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    await recipient.delete(*queue.own)
    assert await next_event(notified) == Received(b"", notifier.notifier_id, deleted(version))
    assert await is_nobodys(notified, notifier)


@at_versions(*VERSIONS)
async def test_156_ndel_without_a_notifier(relay: Relay, version: int) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient)
    for _ in range(2):
        assert await ask(raw, Ndel(), *queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_157_new_notifier_after_ndel(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    notified = await relay.connect(version)
    queue = await make_queue(recipient)
    old = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*old.own)
    await recipient.delete_notifier(*queue.own)
    await next_event(notified)
    new = await make_notifier(recipient, queue, key=old.key)
    assert new.notifier_id != old.notifier_id
    assert await is_nobodys(notified, old)
    await notified.subscribe_notifications(*new.own)
    await send(sender, queue)
    message = await next_msg(recipient, queue)
    assert (await next_notification(notified, new))[0] == message.msg_id


@pytest.mark.parametrize("subscribe", [True, False])
@at_versions(17, 18)
async def test_158_notifier_in_new(relay: Relay, version: int, subscribe: bool) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    notified = await relay.connect(version)
    key = new_key()
    queue = await make_queue(recipient, notifier_key=key, subscribe=subscribe)
    ids = queue.created.notifier
    assert ids is not None
    assert queue.notifier_dh_key is not None
    notifier = Notifier(ids.notifier_id, key, queue.notifier_dh_key, ids.dh_key)
    assert (await recipient.queue_info(*queue.own))["qiNtf"] is True
    await notified.subscribe_notifications(*notifier.own)
    await send(sender, queue)
    announced = (await next_notification(notified, notifier))[0]
    if not subscribe:
        await recipient.subscribe(*queue.own)
    assert (await next_msg(recipient, queue)).msg_id == announced
    await recipient.delete_notifier(*queue.own)
    assert await next_event(notified) == Received(b"", notifier.notifier_id, Deld())


@ensureDeferred
async def test_158_version_16_has_none_in_new(relay: Relay) -> None:
    recipient = await relay.connect(16)
    queue = await make_queue(recipient, notifier_key=new_key())
    assert queue.created.notifier is None
    assert (await recipient.queue_info(*queue.own))["qiNtf"] is False


@at_versions(*VERSIONS)
async def test_159_content_of_a_notification(relay: Relay, version: int) -> None:
    recipient, sender = await relay.connect(version), await relay.connect(version)
    notified = await relay.connect(version)
    queue = await make_queue(recipient)
    notifier = await make_notifier(recipient, queue)
    await notified.subscribe_notifications(*notifier.own)
    nonces = set()
    for _ in range(2):
        await send(sender, queue)
        message = await next_msg(recipient, queue)
        event = await next_event(notified)
        assert isinstance(event.message, Nmsg)
        assert len(event.message.nonce) == 24
        assert len(event.message.meta) == SEALED_META_SIZE == 144
        expected = (message.msg_id, queue.open(message).timestamp)
        assert notifier.open(event.message) == expected
        nonces.add(event.message.nonce)
        await acknowledge(recipient, queue, message)
    assert len(nonces) == 2
