"""Private routing with a proxy that is not honest, over real connections to a real relay (O).

The proxy's side of the connection is ours: it does what no relay of this project does. See
docs/private-routing.md for what it can and cannot do.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from tests.conformance.clients import (
    Connection,
    GetRelay,
    Queue,
    Relay,
    acknowledge,
    close_all,
    make_secured_queue,
    new_id,
    new_key,
    refused,
    versions_to,
)
from tests.conformance.relays import Credentials, RelayProcess
from tests.conformance.versions import at_versions
from txsimplex.client.errors import IdentityError, ProxyError, RelayError, UnexpectedAnswerError
from txsimplex.client.link import RelayLink
from txsimplex.client.proxied import ProxiedRelay, through
from txsimplex.client.session import global_clock, open_session
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Command, Pfwd, Prxy
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded
from txsimplex.smp.messages import Message, Pkey, Pres

VERSIONS = (8, 10, 11, 14, 18)
ROOM: Final = {"queues.quota": 200}
PROHIBITED: Final = Error(("PROXY", "PROTOCOL", "CMD", "PROHIBITED"))
"""What a proxy passes on when the relay has executed a command before."""


async def open_link(relay: Relay, version: int | None = None) -> RelayLink:
    """A connection of a proxy to a relay."""
    session = await open_session(
        relay.endpoint(), relay.process.location, proxy=True, versions=versions_to(version)
    )
    relay.connections.append(session.blocks)
    return RelayLink(session, lambda link: None, most=32, clock=global_clock())


async def forward(link: RelayLink, forwarded: Forwarded) -> bytes | Error:
    """What the relay answers, as a proxy sees it."""
    answered: Deferred[bytes | Error] = Deferred()
    link.forward(forwarded, answered.callback)
    return await answered


class DishonestProxy:
    """A proxy as `through` takes one. It keeps what it has forwarded, and does as it is told.

    `show` makes what it shows of the relay of what the relay shows; `pass_on` forwards a command,
    however often, and says what the sender is answered.
    """

    version = 18
    connected = True

    def __init__(self, link: RelayLink) -> None:
        self.link = link
        self.kept: list[Forwarded] = []
        self.show: Callable[[Pkey], Pkey] = lambda shown: shown

    async def request(
        self,
        command: Command,
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        *,
        corr_id: bytes = b"",
        timeout: float | None = None,
    ) -> Message:
        """What a sender is answered."""
        if isinstance(command, Prxy):
            shown = self.link.key()
            assert isinstance(shown, Pkey)
            return self.show(shown)
        assert isinstance(command, Pfwd)
        forwarded = Forwarded(corr_id, command.version, command.key, command.transmission)
        self.kept.append(forwarded)
        answer = await self.pass_on(forwarded)
        if isinstance(answer, Error):
            raise RelayError(answer)
        return Pres(answer)

    async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
        """As an honest one."""
        return await forward(self.link, forwarded)

    async def relay(self, relay: Relay) -> ProxiedRelay:
        """The relay for a sender that uses this proxy."""
        return await through(cast(SMPClient, self), relay.process.location)


class Repeating(DishonestProxy):
    """It sends everything three times, and passes on the first answer."""

    async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
        answer = await forward(self.link, forwarded)
        for _ in range(2):
            assert await forward(self.link, forwarded) == PROHIBITED
        return answer


async def messages_of(recipient: SMPClient, queue: Queue) -> list[bytes]:
    """The bodies of all messages in a queue, which is empty then."""
    bodies: list[bytes] = []
    while (message := await recipient.get(*queue.own)) is not None:
        bodies.append(queue.open(message).body)
        await acknowledge(recipient, queue, message)
    return bodies


# -- the relay


@at_versions(*VERSIONS)
async def test_a_command_that_is_sent_again_is_not_executed_again(
    relays: GetRelay, version: int
) -> None:
    """At once, and much later in any order."""
    relay = relays(ROOM)
    recipient = await relay.connect()
    proxy = Repeating(await open_link(relay, version))
    routed = await proxy.relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    bodies = [os.urandom(16048) for _ in range(20)]
    for body in bodies:
        await routed.send(queue.sender_id, body, key=key)
    for forwarded in random.sample(proxy.kept, len(proxy.kept)):
        assert await forward(proxy.link, forwarded) == PROHIBITED
    assert await messages_of(recipient, queue) == bodies
    for forwarded in proxy.kept:
        assert await forward(proxy.link, forwarded) == PROHIBITED
    assert await messages_of(recipient, queue) == []


@at_versions(*VERSIONS)
async def test_a_command_sent_twice_at_the_same_time(relays: GetRelay, version: int) -> None:
    """The second one is there before the first is answered."""
    relay = relays(ROOM)
    recipient = await relay.connect()
    link = await open_link(relay, version)

    class Hasty(DishonestProxy):
        async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
            both = [Deferred.fromCoroutine(forward(self.link, forwarded)) for _ in range(2)]
            answer, second = [await each for each in both]
            assert second == PROHIBITED
            return answer

    routed = await Hasty(link).relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    for body in (bodies := [os.urandom(100) for _ in range(20)]):
        await routed.send(queue.sender_id, body, key=key)
    assert await messages_of(recipient, queue) == bodies


@at_versions(*VERSIONS)
async def test_a_command_that_is_sent_again_on_another_connection(
    relays: GetRelay, version: int
) -> None:
    """It was sealed for a key of the first one."""
    relay = relays(ROOM)
    recipient = await relay.connect()
    proxy = DishonestProxy(await open_link(relay, version))
    routed = await proxy.relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    await routed.send(queue.sender_id, b"once", key=key)
    others = [await open_link(relay, version) for _ in range(2)]
    proxy.link.close()
    for other in others:
        (forwarded,) = proxy.kept
        assert isinstance(await forward(other, forwarded), Error)
    assert await messages_of(recipient, queue) == [b"once"]


@at_versions(*VERSIONS)
async def test_a_command_that_was_altered(relays: GetRelay, version: int) -> None:
    """Nothing of it is executed; as it was, it still is."""
    relay = relays(ROOM)
    recipient = await relay.connect()

    class Altering(DishonestProxy):
        async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
            place = random.randrange(len(forwarded.sealed))
            sealed = bytearray(forwarded.sealed)
            sealed[place] ^= 1 << random.randrange(8)
            for altered in (
                replace(forwarded, sealed=bytes(sealed)),
                replace(forwarded, corr_id=new_id()),
                replace(forwarded, key=new_key(Algorithm.X25519).public),
            ):
                assert isinstance(await forward(self.link, altered), Error)
            return await super().pass_on(forwarded)

    routed = await Altering(await open_link(relay, version)).relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    await routed.send(queue.sender_id, b"as it was", key=key)
    assert await messages_of(recipient, queue) == [b"as it was"]


@ensureDeferred
async def test_a_session_of_another_name(relays: GetRelay) -> None:
    """What is signed says in which session, so it holds nowhere else."""
    relay = relays(ROOM)
    recipient = await relay.connect()
    proxy = DishonestProxy(await open_link(relay))
    proxy.show = lambda shown: replace(shown, session_id=os.urandom(32))
    routed = await proxy.relay(relay)
    for algorithm in (Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519):
        queue, key = await make_secured_queue(recipient, algorithm, subscribe=False)
        with refused("AUTH"):
            await routed.send(queue.sender_id, b"", key=key)
        assert await messages_of(recipient, queue) == []


# -- the sender


@pytest.mark.parametrize("what", ["chain", "signature", "both"])
@ensureDeferred
async def test_a_proxy_in_the_place_of_the_relay(relays: GetRelay, what: str) -> None:
    """It has a key of its own, but nobody who signs it in the name of the relay."""
    relay = relays(ROOM)
    own, other = Credentials.make(), relays({}).process.credentials
    assert own.key_hash != other.key_hash
    proxy = DishonestProxy(await open_link(relay))
    shows_itself = DishonestProxy(await open_link(impostor := relays({}, Algorithm.ED448)))
    of_itself = shows_itself.link.key()
    assert isinstance(of_itself, Pkey)
    assert impostor.key_hash != relay.key_hash

    def show(shown: Pkey) -> Pkey:
        chain = shown.chain if what == "signature" else of_itself.chain
        signed = shown.signed_key if what == "chain" else of_itself.signed_key
        return replace(shown, chain=chain, signed_key=signed)

    proxy.show = show
    with pytest.raises(IdentityError):
        await proxy.relay(relay)
    assert proxy.kept == []


@ensureDeferred
async def test_a_key_of_a_former_session(relays: GetRelay) -> None:
    """The relay has signed it, and cannot open any more what is sealed for it."""
    relay = relays(ROOM)
    recipient = await relay.connect()
    former = await open_link(relay)
    shown_before = former.key()
    assert isinstance(shown_before, Pkey)
    former.close()
    proxy = DishonestProxy(await open_link(relay))
    proxy.show = lambda shown: replace(shown, signed_key=shown_before.signed_key)
    routed = await proxy.relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    with pytest.raises(ProxyError):
        await routed.send(queue.sender_id, b"", key=key)
    assert await messages_of(recipient, queue) == []


@ensureDeferred
async def test_answers_that_are_not_the_relays(relays: GetRelay) -> None:
    """An altered one, one to another command, and nonsense."""
    relay = relays(ROOM)
    recipient = await relay.connect()

    class Answering(DishonestProxy):
        answers: Iterator[bytes]

        async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
            return next(self.answers)

    proxy = Answering(await open_link(relay))
    routed = await proxy.relay(relay)
    queue, key = await make_secured_queue(recipient, subscribe=False)
    proxy.answers = iter([bytes(16242), os.urandom(16242), b"", b"OK", os.urandom(17_000)])
    for _ in range(5):
        with pytest.raises(UnexpectedAnswerError):
            await routed.send(queue.sender_id, b"", key=key)

    class Confusing(DishonestProxy):
        """It answers each command with the relay's answer to the one before."""

        former = b""

        async def pass_on(self, forwarded: Forwarded) -> bytes | Error:
            answer = await super().pass_on(forwarded)
            assert isinstance(answer, bytes)
            former, self.former = self.former, answer
            return former

    routed = await Confusing(proxy.link).relay(relay)
    for _ in range(3):
        with pytest.raises(UnexpectedAnswerError):
            await routed.send(queue.sender_id, b"", key=key)


# -- an honest proxy


def memory_has(pid: int, sought: bytes) -> bool:
    """Whether a process, or one that it has started, has a string in its memory."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if memory_has(int(child), sought):
            return True
    regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in regions:
            span, permissions, *_ = region.split()
            if not permissions.startswith("rw"):
                continue
            start, end = (int(each, 16) for each in span.split("-"))
            memory.seek(start)
            try:
                content = memory.read(end - start)
            except OSError:
                # The kernel's own, such as [vvar].
                continue
            if sought in content:
                return True
    return False


def new_directory(parent: Path, name: str) -> Path:
    """A directory for a relay."""
    directory = parent / name
    directory.mkdir(mode=0o700)
    return directory


@ensureDeferred
async def test_no_queue_is_in_the_memory_of_a_proxy(tmp_path: Path) -> None:
    """Nothing of what it has forwarded, looked for in the whole process."""
    credentials, proxying = Credentials.make(), {"proxy.local_networks": "on"}
    with (
        RelayProcess(new_directory(tmp_path, "proxy"), credentials, proxying) as proxy,
        RelayProcess(new_directory(tmp_path, "relay"), Credentials.make(), ROOM) as relay,
    ):
        connections: list[Connection] = []
        client, recipient = [await Relay(each, connections).connect() for each in (proxy, relay)]
        routed = await through(client, relay.location)
        queue, key = await make_secured_queue(recipient, subscribe=False)
        body = os.urandom(16048)
        for _ in range(10):
            await routed.send(queue.sender_id, body, key=key)
        # What is looked for is found where it is.
        assert memory_has(proxy.pid, routed.session_id)
        assert memory_has(relay.pid, queue.sender_id)
        for secret in (queue.sender_id, queue.recipient_id, body[100:132], key.public.raw):
            assert not memory_has(proxy.pid, secret)
        await close_all(connections)
