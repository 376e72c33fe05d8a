"""Conformance I: GET, which asks for a message without subscribing."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.clients import Queue, Relay, ask, err, make_queue, new_id, of, refused
from tests.conformance.versions import at_versions
from txsimplex.client.raw import RawClient
from txsimplex.smp.commands import Ack, Del, Get, Sub
from txsimplex.smp.messages import Msg, Ok, Sok

VERSIONS = (6, 10, 15, 18)
SUBSCRIBED = {version: Sok() if version >= 16 else Ok() for version in VERSIONS}
"""The answer to SUB."""


@dataclass
class Readers:
    """A queue with messages, and two connections of its recipient."""

    queue: Queue
    getter: RawClient
    subscriber: RawClient

    async def get(self) -> Msg:
        """The message that GET gives."""
        answer = await ask(self.getter, Get(), *self.queue.own)
        assert isinstance(answer, Msg)
        return answer

    async def subscribe(self) -> Msg:
        """The message that comes with SUB."""
        answer = await ask(self.subscriber, Sub(), *self.queue.own)
        assert answer == SUBSCRIBED[self.subscriber.session.version]
        event = await self.subscriber.next_message()
        assert (event.corr_id, event.entity_id) == (b"", self.queue.recipient_id)
        return of(Msg, event)

    def body(self, message: Msg) -> bytes:
        """What was sent."""
        return self.queue.open(message).body


async def with_messages(relay: Relay, version: int, *bodies: bytes) -> Readers:
    """Two connections, neither of which has asked for anything yet."""
    creator, sender = await relay.connect(version), await relay.connect(version)
    queue = await make_queue(creator, subscribe=False)
    for body in bodies:
        await sender.send(queue.sender_id, body)
    return Readers(queue, await relay.raw(version), await relay.raw(version))


@at_versions(*VERSIONS)
async def test_129_get_ack_and_an_empty_queue(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    getter, queue = readers.getter, readers.queue
    answer = await getter.request(
        Get(), corr_id=b"1" * 24, entity_id=queue.recipient_id, key=queue.key
    )
    assert (answer.corr_id, answer.entity_id) == (b"1" * 24, queue.recipient_id)
    message = of(Msg, answer)
    assert readers.body(message) == b"hello"
    assert await ask(getter, Ack(message.msg_id), *queue.own) == Ok()
    assert await ask(getter, Get(), *queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_129_get_again_before_ack(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello", b"there")
    message = await readers.get()
    assert await readers.get() == message
    assert await ask(readers.getter, Ack(message.msg_id), *readers.queue.own) == Ok()
    assert readers.body(await readers.get()) == b"there"


@at_versions(*VERSIONS)
async def test_130_sub_and_get_see_the_same_message(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    subscribed, got = await readers.subscribe(), await readers.get()
    assert (got.msg_id, got.body) == (subscribed.msg_id, subscribed.body)
    assert readers.body(got) == b"hello"


@at_versions(*VERSIONS)
async def test_130_get_does_not_end_a_subscription(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    first = await readers.subscribe()
    assert await readers.get() == first
    assert await ask(readers.subscriber, Ack(first.msg_id), *readers.queue.own) == Ok()
    sender = await relay.connect(version)
    await sender.send(readers.queue.sender_id, b"there")
    event = await readers.subscriber.next_message()
    assert readers.body(of(Msg, event)) == b"there"


@at_versions(*VERSIONS)
async def test_131_get_on_a_connection_that_subscribed(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version)
    queue, subscriber = readers.queue, readers.subscriber
    assert await ask(subscriber, Sub(), *queue.own) == SUBSCRIBED[version]
    assert await ask(subscriber, Get(), *queue.own) == err("CMD PROHIBITED")
    # It is subscribed as before.
    await (await relay.connect(version)).send(queue.sender_id, b"hello")
    event = await subscriber.next_message()
    assert (event.corr_id, event.entity_id) == (b"", queue.recipient_id)
    assert await ask(subscriber, Get(), *queue.own) == err("CMD PROHIBITED")


@at_versions(*VERSIONS)
async def test_131_get_on_the_connection_that_created(relay: Relay, version: int) -> None:
    client, getter = await relay.connect(version), await relay.connect(version)
    queue, other = await make_queue(client), await make_queue(client)
    with refused("CMD PROHIBITED"):
        await client.get(*queue.own)
    assert await getter.get(*queue.own) is None
    with refused("CMD PROHIBITED"):
        await getter.subscribe(*queue.own)
    # Only that queue is concerned.
    await getter.subscribe(*other.own)


@at_versions(*VERSIONS)
async def test_131_sub_on_a_connection_that_used_get(relay: Relay, version: int) -> None:
    for bodies in ((), (b"hello",)):
        readers = await with_messages(relay, version, *bodies)
        queue, getter = readers.queue, readers.getter
        await ask(getter, Get(), *queue.own)
        assert await ask(getter, Sub(), *queue.own) == err("CMD PROHIBITED")
        # No message follows, and GET goes on.
        answer = await ask(getter, Get(), *queue.own)
        assert isinstance(answer, Msg if bodies else Ok)


@at_versions(*VERSIONS)
async def test_131_what_a_getter_is_sent(relay: Relay, version: int) -> None:
    """Whoever only asks gets nothing by itself."""
    readers = await with_messages(relay, version)
    assert await ask(readers.getter, Get(), *readers.queue.own) == Ok()
    await (await relay.connect(version)).send(readers.queue.sender_id, b"hello")
    assert readers.body(await readers.get()) == b"hello"


@at_versions(*VERSIONS)
async def test_132_ack_of_a_wrong_id(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    queue, getter = readers.queue, readers.getter
    # Nothing was asked for yet.
    assert await ask(getter, Ack(new_id()), *queue.own) == err("NO_MSG")
    message = await readers.get()
    for wrong in (new_id(), message.msg_id[:-1], queue.recipient_id):
        assert await ask(getter, Ack(wrong), *queue.own) == err("NO_MSG")
    assert await readers.get() == message
    assert await ask(getter, Ack(message.msg_id), *queue.own) == Ok()
    assert await ask(getter, Ack(message.msg_id), *queue.own) == err("NO_MSG")


@at_versions(*VERSIONS)
async def test_133_getter_acks_what_the_subscriber_removed(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello", b"there")
    queue = readers.queue
    message = await readers.subscribe()
    assert await readers.get() == message
    second = await ask(readers.subscriber, Ack(message.msg_id), *queue.own)
    assert isinstance(second, Msg)
    assert await ask(readers.getter, Ack(message.msg_id), *queue.own) == Ok()
    # It removed nothing, so the second message is still the first of the queue.
    assert await readers.get() == second


@at_versions(*VERSIONS)
async def test_134_getter_gets_the_next_message_by_get(relay: Relay, version: int) -> None:
    bodies = (b"one", b"two", b"three")
    readers = await with_messages(relay, version, *bodies)
    for body in bodies:
        message = await readers.get()
        assert readers.body(message) == body
        assert await ask(readers.getter, Ack(message.msg_id), *readers.queue.own) == Ok()
    assert await ask(readers.getter, Get(), *readers.queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_135_subscriber_acks_what_the_getter_removed(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello", b"there")
    queue = readers.queue
    message = await readers.subscribe()
    assert await readers.get() == message
    assert await ask(readers.getter, Ack(message.msg_id), *queue.own) == Ok()
    answer = await ask(readers.subscriber, Ack(message.msg_id), *queue.own)
    assert isinstance(answer, Msg)
    assert readers.body(answer) == b"there"
    assert await ask(readers.subscriber, Ack(answer.msg_id), *queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_135_new_message_after_the_getter_removed_one(relay: Relay, version: int) -> None:
    """The subscriber has not acknowledged, so it is not sent what came meanwhile."""
    readers = await with_messages(relay, version, b"hello")
    queue = readers.queue
    message = await readers.subscribe()
    assert await readers.get() == message
    assert await ask(readers.getter, Ack(message.msg_id), *queue.own) == Ok()
    await (await relay.connect(version)).send(queue.sender_id, b"there")
    answer = await ask(readers.subscriber, Ack(message.msg_id), *queue.own)
    assert isinstance(answer, Msg)
    assert readers.body(answer) == b"there"


@at_versions(*VERSIONS)
async def test_136_getter_sees_what_the_subscriber_did_not_ack(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    message = await readers.subscribe()
    for _ in range(2):
        assert await readers.get() == message
    assert await ask(readers.subscriber, Ack(message.msg_id), *readers.queue.own) == Ok()
    assert await ask(readers.getter, Get(), *readers.queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_136_getter_of_a_deleted_queue(relay: Relay, version: int) -> None:
    readers = await with_messages(relay, version, b"hello")
    message = await readers.get()
    assert await ask(readers.subscriber, Del(), *readers.queue.own) == Ok()
    for command in (Get(), Ack(message.msg_id)):
        assert await ask(readers.getter, command, *readers.queue.own) == err("AUTH")
