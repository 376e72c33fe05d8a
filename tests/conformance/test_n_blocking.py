"""Conformance N: queues that the operator has blocked.

There is no control port yet, so the tests do to a relay in their own process what the
commands of the control port will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted

from smpd.stores.interface import Wanted, What
from tests.conformance.clients import (
    Connection,
    Queue,
    Relay,
    ask,
    err,
    make_queue,
    new_id,
    new_key,
    next_event,
    next_message,
    next_msg,
    no_event,
)
from tests.conformance.notifiers import make_notifier
from tests.conformance.operated import OperatedRelay
from tests.conformance.versions import at_versions
from txsimplex.client.raw import RawClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import (
    Ack,
    Command,
    Del,
    Get,
    Key,
    Ldel,
    Lget,
    LinkData,
    Lkey,
    Lset,
    Ndel,
    Nkey,
    Nsub,
    Off,
    Que,
    QueueMode,
    Rkey,
    Send,
    Skey,
    Sub,
)
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice
from txsimplex.smp.messages import Message, Ok, Sok
from txsimplex.smp.transmissions import Received

VERSIONS = (6, 9, 11, 12, 16, 17, 18)
CONTENT = BlockingInformation(BlockingReason.CONTENT)
BLOCKED = "BLOCKED reason=content"
DATA = LinkData(b"fixed", b"user")


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[OperatedRelay]:
    """A relay and its operator."""
    relay = OperatedRelay(tmp_path)
    relay.start()
    yield relay
    pytest_twisted.blockon(relay.end())


@pytest.fixture
def relay(operated: OperatedRelay, connections: list[Connection]) -> Relay:
    """The same relay for its clients."""
    return Relay(operated, connections)


def admitted(operated: OperatedRelay, queue: Queue, work: Callable[[], bool]) -> bool:
    """What `work` gives, when the relay's store has admitted it to the queue and it is safe."""
    store = operated.service.relay.store
    results: list[bool] = []
    wanted = [Wanted(What.SENDER, queue.sender_id)]
    store.admit(wanted, lambda: results.append(work()), operated)
    store.flush()
    return results == [True]


Block = Callable[..., None]


@pytest.fixture
def block(operated: OperatedRelay) -> Block:
    """Blocks a queue, as the operator can."""

    def block(queue: Queue, information: BlockingInformation = CONTENT) -> None:
        relay = operated.service.relay
        assert admitted(operated, queue, lambda: relay.block_queue(queue.sender_id, information))

    return block


Unblock = Callable[[Queue], None]


@pytest.fixture
def unblock(operated: OperatedRelay) -> Unblock:
    """Activates a blocked queue."""

    def unblock(queue: Queue) -> None:
        relay = operated.service.relay
        assert admitted(operated, queue, lambda: relay.unblock_queue(queue.sender_id))

    return unblock


def blocked_at(version: int, notice: str = "") -> Message:
    """The answer that a client of `version` gets; `notice` is JSON."""
    if version < 12:
        return err("AUTH")
    return err(f"{BLOCKED},notice={notice}" if version >= 18 and notice else BLOCKED)


def of_the_recipient(link_id: bytes) -> list[Command]:
    """Commands of a recipient that a blocked queue refuses (smp-server.md §3.1)."""
    key, dh_key = new_key().public, new_key(Algorithm.X25519).public
    return [
        Sub(),
        Get(),
        Ack(new_id()),
        Key(key),
        Rkey([key]),
        Lset(link_id, DATA),
        Ldel(),
        Nkey(key, dh_key),
        Ndel(),
        Que(),
    ]


@at_versions(12, 15, 18)
async def test_184_commands_on_a_blocked_queue(relay: Relay, version: int, block: Block) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient, subscribe=False)
    block(queue)
    key = new_key()
    for command in of_the_recipient(new_id()):
        assert await ask(raw, command, *queue.own) == err(BLOCKED)
    assert await ask(raw, Skey(key.public), queue.sender_id, key) == err(BLOCKED)
    assert await ask(raw, Send(False, b"hello"), queue.sender_id) == err(BLOCKED)
    # Who may do nothing does not learn it.
    assert await ask(raw, Sub(), queue.recipient_id, key) == err("AUTH")
    assert await ask(raw, Send(False, b"hello"), queue.sender_id, key) == err("AUTH")
    # What is too large is told so first (smp-server.md §4, SEND).
    if version >= 11:
        too_large = Send(False, bytes(16049))
        assert await ask(raw, too_large, queue.sender_id) == err("LARGE_MSG")


@at_versions(15, 18)
async def test_184_links_of_blocked_queues(relay: Relay, version: int, block: Block) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    for mode in (QueueMode.MESSAGING, QueueMode.CONTACT):
        link_id = new_id() if mode is QueueMode.CONTACT else None
        queue = await make_queue(recipient, mode=mode, link=DATA, link_id=link_id)
        link_id = queue.created.link_id
        assert link_id is not None
        block(queue)
        await next_event(recipient)
        await refuses_links(raw, queue, mode, link_id)


async def refuses_links(raw: RawClient, queue: Queue, mode: QueueMode, link_id: bytes) -> None:
    """Asserts that the commands about the link of a blocked queue are refused."""
    key = new_key()
    reading: tuple[Command, PrivateKey | None] = (Lget(), None)
    if mode is QueueMode.MESSAGING:
        reading = (Lkey(key.public), key)
    command, reading_key = reading
    assert await ask(raw, command, link_id, reading_key) == err(BLOCKED)
    assert await ask(raw, Lset(link_id, DATA), *queue.own) == err(BLOCKED)
    assert await ask(raw, Ldel(), *queue.own) == err(BLOCKED)


@at_versions(6, 12, 18)
async def test_184_what_a_blocked_queue_allows(relay: Relay, version: int, block: Block) -> None:
    """OFF, DEL and NSUB; OFF takes the place of the blocking (smp-server.md §3.1, §4)."""
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient, subscribe=False)
    notifier = await make_notifier(recipient, queue)
    block(queue)
    subscribed = Sok() if version >= 16 else Ok()
    assert await ask(raw, Nsub(), *notifier.own) == subscribed
    assert await ask(raw, Sub(), *queue.own) == blocked_at(version)
    assert await ask(raw, Off(), *queue.own) == Ok()
    assert await ask(raw, Sub(), *queue.own) == subscribed
    assert await ask(raw, Send(False, b"hello"), queue.sender_id) == err("AUTH")
    block(queue)
    event = await raw.next_message()
    assert event == Received(b"", queue.recipient_id, blocked_at(version))
    assert await ask(raw, Del(), *queue.own) == Ok()
    assert await ask(raw, Sub(), *queue.own) == err("AUTH")


@at_versions(*VERSIONS)
async def test_185_blocked_by_version(relay: Relay, version: int, block: Block) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    for notice, text in (
        (None, ""),
        (Notice(ttl=86400), '{"ttl":86400}'),
        (Notice(ttl=None), "{}"),
    ):
        queue = await make_queue(recipient, subscribe=False)
        key = new_key()
        block(queue, BlockingInformation(BlockingReason.CONTENT, notice))
        expected = blocked_at(version, text)
        assert await ask(raw, Sub(), *queue.own) == expected
        assert await ask(raw, Key(key.public), *queue.own) == expected
        assert await ask(raw, Send(True, b"hello"), queue.sender_id) == expected
        if version >= 9:
            assert await ask(raw, Skey(key.public), queue.sender_id, key) == expected


@at_versions(6, 12, 18)
async def test_185_reason(relay: Relay, version: int, block: Block) -> None:
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient, subscribe=False)
    block(queue, BlockingInformation(BlockingReason.SPAM))
    expected = "AUTH" if version < 12 else "BLOCKED reason=spam"
    assert await ask(raw, Sub(), *queue.own) == err(expected)
    # The latest reason counts.
    block(queue)
    assert await ask(raw, Sub(), *queue.own) == blocked_at(version)


@at_versions(*VERSIONS)
async def test_188_subscriber_is_told(relay: Relay, version: int, block: Block) -> None:
    recipient, other = await relay.connect(version), await relay.connect(version)
    queue, silent = await make_queue(recipient), await make_queue(recipient, subscribe=False)
    await make_queue(other)
    block(queue, BlockingInformation(BlockingReason.CONTENT, Notice(ttl=60)))
    event = await next_event(recipient)
    assert event == Received(b"", queue.recipient_id, blocked_at(version, '{"ttl":60}'))
    block(silent)
    await no_event(recipient)
    await no_event(other)


@at_versions(6, 12, 18)
async def test_188_subscription_remains(
    relay: Relay, version: int, block: Block, unblock: Unblock
) -> None:
    """After unblocking the subscriber gets messages as before, the old ones too."""
    recipient, raw = await relay.connect(version), await relay.raw(version)
    queue = await make_queue(recipient)
    assert await ask(raw, Send(False, b"one"), queue.sender_id) == Ok()
    first = await next_msg(recipient, queue)
    block(queue)
    await next_event(recipient)
    assert await ask(raw, Ack(first.msg_id), *queue.own) == blocked_at(version)
    unblock(queue)
    assert await ask(raw, Send(False, b"two"), queue.sender_id) == Ok()
    second = await recipient.ack(*queue.own, first.msg_id)
    assert second is not None
    assert queue.open(second).body == b"two"
    assert await recipient.ack(*queue.own, second.msg_id) is None
    assert await ask(raw, Send(False, b"three"), queue.sender_id) == Ok()
    assert (await next_message(recipient, queue)).body == b"three"


@at_versions(6, 12, 18)
async def test_188_getter_and_former_subscriber_are_not_told(
    relay: Relay, version: int, block: Block
) -> None:
    former, current = await relay.connect(version), await relay.connect(version)
    getter = await relay.connect(version)
    queue = await make_queue(former)
    assert await getter.get(*queue.own) is None
    await current.subscribe(*queue.own)
    await next_event(former)
    block(queue)
    event = await next_event(current)
    assert event == Received(b"", queue.recipient_id, blocked_at(version))
    await no_event(former)
    await no_event(getter)
