"""Conformance O: private message routing, with relays as proxy, destination and both."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from twisted.internet.defer import Deferred, gatherResults

from tests.conformance.clients import (
    ALGORITHMS,
    GetRelay,
    Relay,
    acknowledge,
    ask,
    deliver,
    err,
    make_queue,
    make_secured_queue,
    new_id,
    new_key,
    next_msg,
    refused,
)
from tests.conformance.relays import Credentials, RelayProcess
from tests.conformance.versions import at_versions
from txsimplex.addresses import Host, RelayLocation
from txsimplex.boxes import BoxKey, nonce_from
from txsimplex.client.errors import HandshakeError, ProxyError, RelayError, TooLargeError
from txsimplex.client.proxied import ProxiedRelay, through
from txsimplex.client.sending import SenderCommands
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.commands import (
    Command,
    Del,
    LinkData,
    New,
    Pfwd,
    Ping,
    Prxy,
    QueueMode,
    Rfwd,
    Sub,
)
from txsimplex.smp.forwarding import Forwarded
from txsimplex.smp.handshake import shown_key
from txsimplex.smp.hellos import ServerKey
from txsimplex.smp.messages import Pkey, Pong, Pres
from txsimplex.smp.transmissions import Framing, Received, frame

VERSIONS = (6, 8, 11, 14, 18)
PROXY: Final = {"proxy.local_networks": "on"}
"""Settings of a proxy that may connect to relays on this machine."""


@at_versions(*VERSIONS)
async def test_189_prxy_where_proxying_is_off(relays: GetRelay, version: int) -> None:
    relay = relays({"proxy.enabled": "off"})
    raw = await relay.raw(version)
    itself = relay.process.location
    closed_port = RelayLocation((Host.parse("127.0.0.1"),), "1", os.urandom(32))
    for location in (itself, closed_port):
        for password in (None, b"password"):
            assert await ask(raw, Prxy(location, password)) == err("PROXY BASIC_AUTH")
    # So there is no session with another relay to forward to.
    forward = Pfwd(version, new_key(Algorithm.X25519).public, os.urandom(16000))
    assert await ask(raw, forward, os.urandom(32)) == err("PROXY NO_SESSION")


@at_versions(*VERSIONS)
async def test_203_rfwd_without_a_key_in_the_handshake(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, session_key=False)
    for forwarded in (os.urandom(100), b""):
        assert await ask(raw, Rfwd(forwarded)) == err("PROXY BROKER TRANSPORT NO_AUTH")
    assert await ask(raw, b"PING") == Pong()


@at_versions(6)
async def test_203_rfwd_without_alpn(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, alpn=None)
    assert await ask(raw, Rfwd(new_id())) == err("PROXY BROKER TRANSPORT NO_AUTH")


@at_versions(7, 8, 11, 14, 18)
async def test_204_rfwd_with_garbage(relay: Relay, version: int) -> None:
    for proxy in (False, True):
        raw = await relay.raw(version, proxy=proxy)
        for size in (0, 15, 16, 100, 16000):
            assert await ask(raw, Rfwd(os.urandom(size))) == err("CRYPTO")
        assert await ask(raw, Rfwd(new_id()), new_id()) == err("CMD HAS_AUTH")


# -- by way of a proxy


def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@at_versions(8, 18)
async def test_190_prxy_with_a_wrong_password(relays: GetRelay, version: int) -> None:
    proxy = relays({**PROXY, "queues.password": "secret"})
    raw, there = await proxy.raw(version), relays({}).process.location
    for password in (None, b"wrong", b"secre", b"secrets"):
        assert await ask(raw, Prxy(there, password)) == err("PROXY BASIC_AUTH")
    assert isinstance(await ask(raw, Prxy(there, b"secret")), Pkey)


@at_versions(8, 11, 14, 18)
async def test_191_everybody_is_shown_the_same_session(relays: GetRelay, version: int) -> None:
    proxy, there = relays(PROXY), relays({}).process.location
    shown = []
    for _ in range(2):
        raw = await proxy.raw(version)
        shown += [await ask(raw, Prxy(there)), await ask(raw, Prxy(there))]
    first = shown[0]
    assert isinstance(first, Pkey)
    assert shown == [first] * 4
    assert (first.versions.minimum, first.versions.maximum) == (8, 17)
    assert len(first.session_id) == 32


@at_versions(8, 11, 14, 18)
async def test_192_an_unsecured_queue(relays: GetRelay, version: int) -> None:
    proxy, relay = relays(PROXY), relays({})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    await deliver(routed, recipient, await make_queue(recipient))
    unknown = ProxiedRelay(client, os.urandom(32), 17, new_key(Algorithm.X25519).public)
    with refused("PROXY NO_SESSION"):
        await unknown.send(new_id(), b"")


@pytest.mark.parametrize("greatest", [8, 10, 11, 13, 14, 17, 18])
@at_versions(8, 10, 11, 14, 18)
async def test_193_secured_queues_whatever_the_versions(
    relays: GetRelay, greatest: int, version: int
) -> None:
    """With the versions of both relays forced, and keys of each kind; 16,048 bytes."""
    proxy = relays(PROXY)
    relay = relays({"protocol.maximum_version": greatest})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    # Versions 11 to 13 have no way to say that a connection is a proxy's.
    assert routed.version == min(17, 10 if 11 <= greatest <= 13 else greatest)
    for algorithm in ALGORITHMS:
        queue, key = await make_secured_queue(recipient, algorithm)
        await deliver(routed, recipient, queue, key)
        with refused("AUTH"):
            await routed.send(queue.sender_id, b"")
        with refused("AUTH"):
            await routed.send(queue.sender_id, b"", key=new_key(algorithm))


@at_versions(18)
async def test_194_bodies_of_the_greatest_size(relays: GetRelay, version: int) -> None:
    proxy, relay = relays(PROXY), relays({})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    for algorithm in ALGORITHMS:
        queue, key = await make_secured_queue(recipient, algorithm)
        await deliver(routed, recipient, queue, key)
        with pytest.raises(TooLargeError):
            await routed.send(queue.sender_id, bytes(16200), key=key)


@at_versions(8, 18)
async def test_193_the_sender_secures_the_queue(relays: GetRelay, version: int) -> None:
    proxy, relay = relays(PROXY), relays({})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    for algorithm in ALGORITHMS:
        queue, key = await make_queue(recipient), new_key(algorithm)
        await routed.sender_secure(queue.sender_id, key)
        await deliver(routed, recipient, queue, key)


@at_versions(18)
async def test_183_links_by_way_of_a_proxy(relays: GetRelay, version: int) -> None:
    proxy, relay = relays(PROXY), relays({})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed, data = await through(client, relay.process.location), LinkData(b"fixed", b"user")
    link_id = new_id()
    contact = await make_queue(recipient, mode=QueueMode.CONTACT, link=data, link_id=link_id)
    assert await routed.get_link(link_id) == await recipient.get_link(link_id)
    one_time, key = await make_queue(recipient, link=data), new_key()
    assert one_time.created.link_id is not None
    found = await routed.secure_link(one_time.created.link_id, key)
    assert (found.sender_id, found.data) == (one_time.sender_id, data)
    with refused("AUTH"):
        await routed.get_link(one_time.created.link_id)
    assert contact.sender_id != one_time.sender_id


@at_versions(8, 18)
async def test_195_a_relay_that_is_its_own_proxy(relays: GetRelay, version: int) -> None:
    relay = relays(PROXY)
    client, recipient = await relay.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    queue, key = await make_secured_queue(recipient)
    await deliver(routed, recipient, queue, key)


@pytest.mark.parametrize(("senders", "messages"), [(1, 200), (5, 40), (10, 20)])
@at_versions(18)
async def test_196_many_messages(
    relays: GetRelay, senders: int, messages: int, version: int
) -> None:
    proxy, relay = relays(PROXY), relays({"queues.quota": 200})
    recipient = await relay.connect()
    clients = [await proxy.connect(version) for _ in range(senders)]

    async def send(client: SMPClient) -> None:
        queue, key = await make_secured_queue(recipient, subscribe=False)
        routed = await through(client, relay.process.location)
        bodies = [os.urandom(100) for _ in range(messages)]
        for body in bodies:
            await routed.send(queue.sender_id, body, key=key)
        for body in bodies:
            message = await recipient.get(*queue.own)
            assert message is not None
            assert queue.open(message).body == body
            await acknowledge(recipient, queue, message)

    await gatherResults([Deferred.fromCoroutine(send(client)) for client in clients])


@at_versions(18)
async def test_197_a_port_at_which_nobody_listens(relays: GetRelay, version: int) -> None:
    raw = await relays(PROXY).raw(version)
    there = RelayLocation((Host.parse("127.0.0.1"),), str(closed_port()), os.urandom(32))
    for _ in range(1000):
        assert await ask(raw, Prxy(there)) == err("PROXY BROKER NETWORK")
    assert await ask(raw, b"PING") == Pong()


@at_versions(18)
async def test_249_a_relay_of_another_identity_and_hosts_that_are_none(
    relays: GetRelay, version: int
) -> None:
    raw, there = await relays(PROXY).raw(version), relays({}).process.location
    onion = Host.parse("a" * 56 + ".onion")
    nowhere = Host.parse("does-not-exist.invalid")
    for location in (
        replace(there, key_hash=os.urandom(32)),
        replace(there, hosts=(onion,)),
        replace(there, hosts=(nowhere,)),
        replace(there, port="0"),
        replace(there, port="65536"),
        replace(there, port="x"),
    ):
        assert await ask(raw, Prxy(location)) == err("PROXY BROKER NETWORK")


@at_versions(18)
async def test_addresses_that_are_not_public_are_refused(relays: GetRelay, version: int) -> None:
    """A relay is no way into its operator's network."""
    raw, there = await relays({}).raw(version), relays({}).process.location
    for host in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "localhost"):
        location = replace(there, hosts=(Host.parse(host),))
        assert await ask(raw, Prxy(location)) == err("PROXY BROKER NETWORK")


@at_versions(18)
async def test_198_a_relay_that_is_too_old(relays: GetRelay, version: int) -> None:
    proxy = relays(PROXY)
    old = relays({"protocol.maximum_version": 7})
    with refused("PROXY BROKER TRANSPORT VERSION"):
        await through(await proxy.connect(version), old.process.location)
    too_old = await proxy.connect(7)
    with pytest.raises(HandshakeError):
        await through(too_old, relays({}).process.location)


@at_versions(18)
async def test_199_a_relay_that_was_restarted(
    relays: GetRelay, tmp_path: Path, version: int
) -> None:
    client = await relays(PROXY).connect(version)
    with RelayProcess(tmp_path, Credentials.make()) as process:
        location = process.location
        routed = await through(client, location)
        process.end()
        with pytest.raises(ProxyError, match="PROXY NO_SESSION"):
            await routed.send(new_id(), b"")
        process.start_again(location)
        routed = await through(client, location)
        with refused("AUTH"):
            await routed.send(new_id(), b"")


@at_versions(18)
async def test_a_relay_that_is_away_for_a_moment(
    relays: GetRelay, tmp_path: Path, version: int
) -> None:
    """Beyond the reference: PRXY waits for it (§5)."""
    client = await relays({**PROXY, "proxy.retry_time": 20}).connect(version)
    with RelayProcess(tmp_path, Credentials.make()) as process:
        location = process.location
        process.end()
        asked = Deferred.fromCoroutine(through(client, location, timeout=60))
        await client.ping()
        process.start_again(location)
        routed = await asked
        with refused("AUTH"):
            await routed.send(new_id(), b"")


@at_versions(8, 18)
async def test_delays_against_the_comparison_of_times(relays: GetRelay, version: int) -> None:
    """Beyond the reference, and with real clocks: no answer is too early, and all arrives."""
    relay = relays({"delivery.answer_time": 0.3, "delivery.random_delay": 0.2})
    client, recipient = await relays(PROXY).connect(version), await relay.connect()
    queue = await make_queue(recipient)
    routed, direct = await through(client, relay.process.location), await relay.connect()
    senders: list[SenderCommands] = [routed, direct]
    for sender in senders:
        begun = time.monotonic()
        await sender.send(queue.sender_id, b"hello")
        assert 0.3 <= time.monotonic() - begun < 5
        begun = time.monotonic()
        with refused("AUTH"):
            await sender.send(new_id(), b"hello")
        assert 0.3 <= time.monotonic() - begun < 5
        message = await next_msg(recipient, queue)
        assert queue.open(message).body == b"hello"
        await acknowledge(recipient, queue, message)


@at_versions(8, 18)
async def test_202_commands_that_are_not_forwarded(relays: GetRelay, version: int) -> None:
    proxy, relay = relays(PROXY), relays({})
    client, recipient = await proxy.connect(version), await relay.connect()
    routed = await through(client, relay.process.location)
    queue = await make_queue(recipient)
    others: list[tuple[Command, bytes, PrivateKey | None]] = [
        (Sub(), *queue.own),
        (Del(), *queue.own),
        (New(queue.key.public, new_key(Algorithm.X25519).public, None, True), b"", queue.key),
    ]
    for command, entity_id, key in others:
        with refused("CMD PROHIBITED"):
            await routed.request(command, entity_id, key)
    await deliver(routed, recipient, queue)


@at_versions(8, 18)
async def test_248_ping_and_sub_are_answered_inside(relays: GetRelay, version: int) -> None:
    """The proxy sees an answer like any other."""
    client = await relays(PROXY).connect(version)
    routed = await through(client, relays({}).process.location)
    for command in (Ping(), Sub()):
        entity_id, key = (b"", None) if isinstance(command, Ping) else (new_id(), new_key())
        with pytest.raises(RelayError) as caught:
            await routed.request(command, entity_id, key)
        assert not isinstance(caught.value, ProxyError)
        assert str(caught.value.error) == "CMD PROHIBITED"


@at_versions(8, 18)
async def test_247_what_does_not_open_at_the_relay(relays: GetRelay, version: int) -> None:
    raw = await relays(PROXY).raw(version)
    shown = await ask(raw, Prxy(relays({}).process.location))
    assert isinstance(shown, Pkey)
    for size in (0, 16, 100, 16242):
        forward = Pfwd(17, new_key(Algorithm.X25519).public, os.urandom(size))
        assert await ask(raw, forward, shown.session_id) == err("PROXY PROTOCOL CRYPTO")
        assert await ask(raw, forward, os.urandom(32)) == err("PROXY NO_SESSION")


def sealed_for(shown: ServerKey, session_id: bytes, nonce: bytes) -> tuple[PublicKey, bytes]:
    """A SEND to no queue, for a relay, with the key of the command: shorter than apps make it."""
    key = new_key(Algorithm.X25519)
    framing = Framing(17, session_id)
    inner = framing.transmission(framing.authorized(b"1", new_id(), b"SEND F x"), b"")
    relay_key = shown_key(shown, shown.chain[0])
    assert relay_key is not None
    box = BoxKey(key.exchange(relay_key))
    return key.public, box.seal_padded(frame((inner,)), nonce_from(nonce), 200)


@at_versions(8, 18)
async def test_ids_so_long_that_the_answer_fits_into_no_block(
    relays: GetRelay, version: int
) -> None:
    """At the relay, anybody's: nobody else notices anything."""
    relay = relays({"proxy.enabled": "off"})
    raw, other = await relay.raw(version), await relay.connect()
    shown, secret = raw.session.shown, raw.session.secret
    assert shown is not None
    assert secret is not None
    for size in (24, 64, 255):
        nonce, corr_id = os.urandom(255), os.urandom(size)
        key, sealed = sealed_for(shown, raw.session.session_id, nonce)
        forwarded = Forwarded(nonce, 17, key, sealed).encode()
        body = BoxKey(secret).seal(forwarded, nonce_from(corr_id))
        answer = await raw.request(Rfwd(body), corr_id=corr_id)
        assert answer == Received(corr_id, b"", err("BLOCK"))
    assert await ask(raw, b"PING") == Pong()
    await other.ping()


@at_versions(8, 18)
async def test_ids_so_long_that_the_answer_to_the_proxy_fits_into_no_block(
    relays: GetRelay, version: int
) -> None:
    """Its connection is that of all senders, and stays."""
    proxy, relay = relays(PROXY), relays({})
    raw, client = await proxy.raw(version), await proxy.connect(version)
    recipient = await relay.connect()
    routed = await through(client, relay.process.location)
    shown = await ask(raw, Prxy(relay.process.location))
    assert isinstance(shown, Pkey)
    for size in (24, 72, *range(74, 94, 2), 255):
        nonce = os.urandom(size)
        sealed = sealed_for(ServerKey(shown.chain, shown.signed_key), shown.session_id, nonce)
        received = await raw.request(Pfwd(17, *sealed), corr_id=nonce, entity_id=shown.session_id)
        assert (received.corr_id, received.entity_id) == (nonce, shown.session_id)
        if size > 72:
            assert received.message == err("PROXY PROTOCOL BLOCK")
        else:
            assert isinstance(received.message, Pres)
    assert await ask(raw, b"PING") == Pong()
    queue, key = await make_secured_queue(recipient)
    await deliver(routed, recipient, queue, key)


@at_versions(18)
async def test_several_prxy_in_one_block_are_served_at_once(relays: GetRelay, version: int) -> None:
    """A dead relay among them keeps nobody waiting."""
    raw = await relays(PROXY).raw(version)
    good = relays({}).process.location
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        dead = RelayLocation(
            (Host.parse("127.0.0.1"),), str(silent.getsockname()[1]), os.urandom(32)
        )
        corr_ids = [new_id() for _ in range(3)]
        raw.send_transmissions(
            raw.transmission(Prxy(dead), corr_id=corr_ids[0]),
            raw.transmission(Prxy(good), corr_id=corr_ids[1]),
            raw.transmission(b"PING", corr_id=corr_ids[2]),
        )
        answers = {}
        for _ in range(2):
            received = await raw.next_message()
            answers[received.corr_id] = received.message
        assert isinstance(answers[corr_ids[1]], Pkey)
        assert answers[corr_ids[2]] == Pong()
    finally:
        silent.close()
    received = await raw.next_message()
    assert (received.corr_id, received.message) == (corr_ids[0], err("PROXY BROKER NETWORK"))
