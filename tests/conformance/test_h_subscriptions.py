"""Conformance H: subscriptions and delivery."""

from __future__ import annotations

from collections import Counter

from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from tests.conformance.clients import (
    Queue,
    Relay,
    acknowledge,
    err,
    make_queue,
    make_secured_queue,
    new_id,
    new_key,
    next_event,
    next_message,
    next_msg,
    no_event,
    of,
    refused,
)
from tests.conformance.relays import REFERENCE_TEST_SETTINGS
from tests.stalls import at_most
from txsimplex.client.errors import RelayError
from txsimplex.client.raw import RawClient
from txsimplex.client.smp import Request, SMPClient
from txsimplex.smp.commands import Ack, Del, Key, Off, Que, Send, Sub
from txsimplex.smp.messages import End, Info, Msg, Ok, Sok
from txsimplex.smp.transmissions import Received

END_INTERVAL = float(str(REFERENCE_TEST_SETTINGS["delivery.end_interval"]))


def sub(client: RawClient, queue: Queue, corr_id: bytes) -> bytes:
    """SUB of `queue`, ready to share a block."""
    return client.transmission(Sub(), corr_id=corr_id, entity_id=queue.recipient_id, key=queue.key)


async def answers(client: RawClient, number: int) -> list[list[Received]]:
    """The next blocks, up to so many messages."""
    blocks = []
    while number > 0:
        blocks.append(await client.next_batch())
        number -= len(blocks[-1])
    return blocks


@ensureDeferred
async def test_112_one_message_at_a_time(relay: Relay) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    raw = await relay.raw()
    queue = await make_queue(recipient, subscribe=False)
    assert await raw.request(Sub(), entity_id=queue.recipient_id, key=queue.key) == Received(
        b"", queue.recipient_id, Sok()
    )
    for body in (b"first", b"second"):
        await sender.send(queue.sender_id, body)
    event = await raw.next_message()
    assert (event.corr_id, event.entity_id) == (b"", queue.recipient_id)
    first = of(Msg, event)
    assert queue.open(first).body == b"first"
    answer = await raw.request(
        Ack(first.msg_id), corr_id=b"abcd", entity_id=queue.recipient_id, key=queue.key
    )
    assert (answer.corr_id, answer.entity_id) == (b"abcd", queue.recipient_id)
    second = of(Msg, answer)
    assert queue.open(second).body == b"second"
    answer = await raw.request(
        Ack(second.msg_id), corr_id=b"efgh", entity_id=queue.recipient_id, key=queue.key
    )
    assert answer == Received(b"efgh", queue.recipient_id, Ok())


@ensureDeferred
async def test_113_fifty_queues_taken_over_twice(relay: Relay) -> None:
    first, second, third = [await relay.connect() for _ in range(3)]
    queues = [await make_queue(first) for _ in range(50)]
    requests = [Request(Sub(), *queue.own) for queue in queues]
    for client in (second, third):
        assert await client.send_many(requests) == [Sok()] * 50
    for client in (first, second):
        ended = {(await next_event(client)).entity_id for _ in queues}
        assert ended == {queue.recipient_id for queue in queues}


@ensureDeferred
async def test_114_takeover_delivers_again(relay: Relay) -> None:
    first, second = await relay.connect(), await relay.connect()
    queue = await make_queue(first)
    await first.send(queue.sender_id, b"hello")
    message = await next_msg(first, queue)
    await second.subscribe(*queue.own)
    assert await next_msg(second, queue) == message


@ensureDeferred
async def test_115_end(relay: Relay) -> None:
    first, second = await relay.connect(), await relay.connect()
    queue = await make_queue(first)
    await second.subscribe(*queue.own)
    with at_most(2 * END_INTERVAL):
        assert await next_event(first) == Received(b"", queue.recipient_id, End())
    await no_event(second, 1.2 * END_INTERVAL)


@ensureDeferred
async def test_116_after_end(relay: Relay) -> None:
    first, second, sender = [await relay.connect() for _ in range(3)]
    queue = await make_queue(first)
    await sender.send(queue.sender_id, b"before")
    before = await next_msg(first, queue)
    await second.subscribe(*queue.own)
    assert await next_msg(second, queue) == before
    assert (await next_event(first)).message == End()
    with refused("NO_MSG"):
        await acknowledge(first, queue, before)
    assert await acknowledge(second, queue, before) is None
    await sender.send(queue.sender_id, b"after")
    after = await next_msg(second, queue)
    assert queue.open(after).body == b"after"
    with refused("NO_MSG"):
        await acknowledge(first, queue, after)
    assert await acknowledge(second, queue, after) is None
    await no_event(first)


@ensureDeferred
async def test_116_before_end_is_sent(relay: Relay) -> None:
    """A subscription that was taken over is over at once, not only when END comes."""
    first, second, sender = [await relay.connect() for _ in range(3)]
    queue = await make_queue(first)
    await second.subscribe(*queue.own)
    await sender.send(queue.sender_id, b"hello")
    message = await next_msg(second, queue)
    with refused("NO_MSG"):
        await acknowledge(first, queue, message)
    assert (await next_event(first)).message == End()


@ensureDeferred
async def test_117_sub_again(relay: Relay) -> None:
    client, other = await relay.connect(), await relay.connect()
    queue = await make_queue(client)
    await other.send(queue.sender_id, b"hello")
    message = await next_msg(client, queue)
    for _ in range(2):
        await client.subscribe(*queue.own)
        assert await next_msg(client, queue) == message
    assert await acknowledge(client, queue, message) is None
    await no_event(client, 1.2 * END_INTERVAL)


@ensureDeferred
async def test_118_message_in_the_block_of_the_answer(relay: Relay) -> None:
    client, other = await relay.raw(), await relay.connect()
    queue = await make_queue(other, subscribe=False)
    await other.send(queue.sender_id, b"hello")
    client.send_transmissions(sub(client, queue, b"abcd"))
    answer, event = await client.next_batch()
    assert answer == Received(b"abcd", queue.recipient_id, Sok())
    assert (event.corr_id, event.entity_id) == (b"", queue.recipient_id)
    assert queue.open(of(Msg, event)).body == b"hello"


async def queues_with_messages(client: SMPClient, number: int) -> list[Queue]:
    queues = [await make_queue(client, subscribe=False) for _ in range(number)]
    for queue in queues:
        await client.send(queue.sender_id, queue.sender_id)
    return queues


@ensureDeferred
async def test_119_more_than_four_subs(relay: Relay) -> None:
    client, other = await relay.raw(), await relay.connect()
    queues = await queues_with_messages(other, 6)
    client.send_transmissions(*[sub(client, queue, new_id()) for queue in queues])
    soks, *messages = await answers(client, 12)
    assert [(each.entity_id, each.message) for each in soks] == [
        (queue.recipient_id, Sok()) for queue in queues
    ]
    assert [len(block) for block in messages] == [1] * 6
    for queue, (event,) in zip(queues, messages, strict=True):
        assert event.entity_id == queue.recipient_id
        assert queue.open(of(Msg, event)).body == queue.sender_id


@ensureDeferred
async def test_119_up_to_four_subs(relay: Relay) -> None:
    """Then the first message shares a block with as many answers as fit beside it (three)."""
    client, other = await relay.raw(), await relay.connect()
    for number, first_blocks in ((2, [3, 1]), (3, [4, 1, 1]), (4, [1, 4, 1, 1, 1])):
        queues = await queues_with_messages(other, number)
        client.send_transmissions(*[sub(client, queue, new_id()) for queue in queues])
        blocks = await answers(client, 2 * number)
        assert [len(block) for block in blocks] == first_blocks
        kinds = [type(each.message) for block in blocks for each in block]
        assert kinds == [Sok] * number + [Msg] * number


@ensureDeferred
async def test_120_commands_of_one_block_in_order(relay: Relay) -> None:
    """Executed from the first to the last, where the reference begins with the last.

    No client relies on its order (smp-server.md §2.2); answers are in order in both.
    """
    client = await relay.connect()
    queue = await make_queue(client)
    sender_key = new_key()
    got = await client.send_many(
        [
            Request(Key(sender_key.public), *queue.own),
            Request(Que(), *queue.own),
            Request(Key(new_key().public), *queue.own),
            Request(Off(), *queue.own),
            Request(Send(False, b"hello"), queue.sender_id),
            Request(Del(), *queue.own),
            Request(Que(), *queue.own),
        ]
    )
    ok, info, another_key, off, send, deleted, after = got
    assert [ok, off, deleted] == [Ok()] * 3
    assert isinstance(info, Info)
    assert info.state["qiSnd"] is True
    for refusal in (another_key, send, after):
        assert isinstance(refusal, RelayError)
        assert str(refusal.error) == "AUTH"


@ensureDeferred
async def test_121_key_of_the_same_block_is_not_known_yet(relay: Relay) -> None:
    client = await relay.connect()
    queue, sender_key = await make_queue(client), new_key()
    key = Request(Key(sender_key.public), *queue.own)
    send = Request(Send(False, b"hello"), queue.sender_id, sender_key)
    ok, refusal = await client.send_many([key, send])
    assert ok == Ok()
    assert isinstance(refusal, RelayError)
    assert str(refusal.error) == "AUTH"
    assert await client.send_many([key, send]) == [Ok(), Ok()]


@ensureDeferred
async def test_122_message_before_ok(relay: Relay) -> None:
    client, other = await relay.raw(), await relay.connect()
    queue = await make_queue(other, subscribe=False)
    client.send_transmissions(sub(client, queue, b"c"))
    assert (await client.next_message()).message == Sok()
    client.send(Send(False, b"hello"), corr_id=b"abcd", entity_id=queue.sender_id)
    event = await client.next_message()
    assert queue.open(of(Msg, event)).body == b"hello"
    assert await client.next_message() == Received(b"abcd", queue.sender_id, Ok())


@ensureDeferred
async def test_123_two_senders(relay: Relay) -> None:
    recipient, one, other = [await relay.connect() for _ in range(3)]
    queue, key = await make_secured_queue(recipient)
    for _ in range(50):
        bodies = {new_id(), new_id()}
        await gatherResults(
            [
                Deferred.fromCoroutine(sender.send(queue.sender_id, body, key=key))
                for sender, body in zip((one, other), bodies, strict=True)
            ]
        )
        first = await next_msg(recipient, queue)
        second = await acknowledge(recipient, queue, first)
        assert second is not None
        assert {queue.open(each).body for each in (first, second)} == bodies
        assert await acknowledge(recipient, queue, second) is None
        assert len(recipient.events) == 0


@ensureDeferred
async def test_124_only_create(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client, subscribe=False)
    await client.send(queue.sender_id, b"hello")
    await no_event(client)
    with refused("NO_MSG"):
        await client.ack(*queue.own, new_id())
    await client.subscribe(*queue.own)
    assert (await next_message(client, queue)).body == b"hello"


@ensureDeferred
async def test_124_only_create_and_get(relay: Relay) -> None:
    client = await relay.connect()
    queue = await make_queue(client, subscribe=False)
    await client.send(queue.sender_id, b"hello")
    message = await client.get(*queue.own)
    assert message is not None
    assert queue.open(message).body == b"hello"
    await no_event(client)


@ensureDeferred
async def test_125_two_hundred_queues_in_one_batch(relay: Relay) -> None:
    """That queues outlive the relay comes with the stores that do."""
    creator, client = await relay.connect(), await relay.connect()
    queues = [await make_queue(creator, subscribe=False) for _ in range(200)]
    requests = [Request(Sub(), *queue.own) for queue in queues]
    assert await client.send_many(requests) == [Sok()] * 200
    await creator.send_many([Request(Send(False, b"x"), queue.sender_id) for queue in queues])
    for _ in queues:
        assert isinstance((await next_event(client)).message, Msg)
    await client.close()
    again = await relay.connect()
    assert await again.send_many(requests) == [Sok()] * 200
    delivered = [await next_event(again) for _ in queues]
    assert {event.entity_id for event in delivered} == {queue.recipient_id for queue in queues}


@ensureDeferred
async def test_126_each_message_once_in_a_batch(relay: Relay) -> None:
    creator = await relay.connect()
    queues = await queues_with_messages(creator, 300)
    requests = [Request(Sub(), *queue.own) for queue in queues]
    for _ in range(2):
        client = await relay.connect()
        assert await client.send_many(requests) == [Sok()] * len(queues)
        delivered = Counter([(await next_event(client)).entity_id for _ in queues])
        assert delivered == Counter(queue.recipient_id for queue in queues)
        await no_event(client)


@ensureDeferred
async def test_127_delivered_again_unchanged(relay: Relay) -> None:
    sender, first = await relay.connect(), await relay.connect()
    queue = await make_queue(first)
    await sender.send(queue.sender_id, b"hello", notify=True)
    message = await next_msg(first, queue)
    await first.close()
    second = await relay.connect()
    await second.subscribe(*queue.own)
    again = await next_msg(second, queue)
    assert again.msg_id == message.msg_id
    assert queue.open(again) == queue.open(message)
    assert again == message


@ensureDeferred
async def test_128_refused_commands_among_others(relay: Relay) -> None:
    client, other = await relay.raw(), await relay.connect()
    queues = [await make_queue(other, subscribe=False) for _ in range(3)]
    good = [sub(client, queue, b"good") for queue in queues]
    stranger = client.transmission(
        Sub(), corr_id=b"bad1", entity_id=queues[0].recipient_id, key=new_key()
    )
    unknown = client.transmission(b"HELLO", corr_id=b"bad2")
    unsigned = client.transmission(Sub(), corr_id=b"bad3", entity_id=queues[0].recipient_id)
    client.send_transmissions(good[0], stranger, good[1], unknown, unsigned, good[2], b"\0")
    refusals, soks = await answers(client, 7)
    assert refusals == [
        Received(b"bad1", queues[0].recipient_id, err("AUTH")),
        Received(b"bad2", b"", err("CMD UNKNOWN")),
        Received(b"bad3", queues[0].recipient_id, err("CMD NO_AUTH")),
        Received(b"", b"", err("BLOCK")),
    ]
    assert soks == [Received(b"good", queue.recipient_id, Sok()) for queue in queues]
