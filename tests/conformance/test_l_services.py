"""Conformance L: services, which have a certificate and subscribe for many."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    GetRelay,
    Queue,
    Relay,
    ask,
    err,
    make_queue,
    make_service,
    new_id,
    new_key,
    next_content,
    next_event,
    next_msg,
    refused,
    send_content,
    soon,
)
from tests.conformance.notifiers import Notifier, make_notifier, next_notification
from tests.conformance.numbers import conforms
from tests.conformance.versions import at_versions
from txsimplex.certificates import SignedKey, service_fingerprint
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.errors import DisconnectedError, HandshakeError
from txsimplex.client.raw import RawClient
from txsimplex.client.session import Service
from txsimplex.client.smp import SMPClient
from txsimplex.encoding import short
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import (
    Ack,
    Command,
    Get,
    Lget,
    New,
    Nsub,
    Nsubs,
    Ping,
    Rfwd,
    Role,
    Send,
    Sub,
    Subs,
)
from txsimplex.smp.hellos import ClientHello, ServerHello, ServiceHello, ServiceResponse
from txsimplex.smp.messages import Deld, End, Ends, Ids, Ok, Pong, Sok, Soks
from txsimplex.smp.transmissions import Received

VERSIONS = (16, 17, 18)
BAD_SERVICE = b"EHANDSHAKE BAD_SERVICE"
BAD_AUTH = b"EHANDSHAKE BAD_AUTH"


def chain_of(length: int, algorithm: Algorithm = Algorithm.ED25519) -> Service:
    """A service with a chain of 1 to 4 certificates."""
    since = datetime.now(UTC) - timedelta(days=1)
    issuer: tuple[bytes, PrivateKey] | None = None
    authorities: list[bytes] = []
    for depth in range(max(length - 1, 1)):
        key = new_key(algorithm)
        name = f"authority {depth}"
        authority = make_authority(key, since, os.urandom, common_name=name, issuer=issuer)
        authorities.insert(0, authority)
        issuer = authority, key
    assert issuer is not None
    if length == 1:
        return Service(Role.NOTIFIER, authorities, issuer[1])
    key = new_key(algorithm)
    leaf = make_online("a service", key.public, *issuer, since, os.urandom)
    return Service(Role.NOTIFIER, (leaf, *authorities), key)


def as_role(service: Service, role: Role) -> Service:
    """The same certificate for another role."""
    return Service(role, service.chain, service.key)


async def notified_queue(recipient: SMPClient) -> tuple[Queue, Notifier]:
    """A queue that has a notifier."""
    queue = await make_queue(recipient)
    return queue, await make_notifier(recipient, queue)


async def send(sender: SMPClient, queue: Queue) -> None:
    """Sends a message that notifies."""
    await sender.send(queue.sender_id, b"hello", notify=True)


def session_of(client: RawClient | SMPClient) -> Any:
    """Id, fingerprint and key of the service in a session."""
    assert client.session.service is not None
    return client.session.service


def service_id(client: RawClient | SMPClient) -> bytes:
    """The relay's id for the service."""
    given: bytes = session_of(client).service_id
    return given


# -- the handshake


async def after_hello(
    relay: Relay, service: Service, version: int = 18, **different: Any
) -> tuple[BlockConnection, bytes]:
    """A connection and the content of the third block of its handshake.

    `different` are fields of the hello that are not those of `service`.
    """
    connection = await relay.blocks(service=service)
    ServerHello.decode(await next_content(connection))
    signed = SignedKey.sign(new_key().public, service.key).encode()
    fields = {"role": service.role, "chain": list(service.chain), "signed_key": signed}
    hello = ClientHello(version, relay.key_hash, new_key(Algorithm.X25519).public)
    hello.service = ServiceHello(**{**fields, **different})
    send_content(connection, hello.encode())
    return connection, await next_content(connection)


async def is_closed(connection: BlockConnection) -> bool:
    """Whether the relay closes and sends nothing more."""
    with pytest.raises(DisconnectedError):
        await soon(connection.next_block())
    return True


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@at_versions(*VERSIONS)
async def test_161_id_of_a_service(relay: Relay, version: int, length: int) -> None:
    service = chain_of(length)
    _, content = await after_hello(relay, service, version)
    response = ServiceResponse.decode(content)
    assert response.service_id is not None
    assert len(response.service_id) == 24
    assert content == b"R" + short(response.service_id)
    # The same certificate gives the same id, at any version.
    for _ in range(2):
        client = await relay.connect(version, service=service)
        assert client.service_id == response.service_id
        await client.ping()
    latest = await relay.connect(service=service)
    assert latest.service_id == response.service_id
    # And another certificate another id.
    other = await relay.connect(version, service=chain_of(length))
    assert other.service_id != response.service_id


@ensureDeferred
async def test_161_service_is_known_by_its_identity(relay: Relay) -> None:
    """A new online certificate of the same identity is the same service (smp-wire.md §6.3)."""
    since = datetime.now(UTC) - timedelta(days=1)
    authority_key = new_key()
    authority = make_authority(authority_key, since, os.urandom, common_name="a service's CA")
    ids = set()
    for algorithm in (Algorithm.ED25519, Algorithm.ED25519, Algorithm.ED448):
        key = new_key(algorithm)
        leaf = make_online("online", key.public, authority, authority_key, since, os.urandom)
        client = await relay.connect(service=Service(Role.NOTIFIER, (leaf, authority), key))
        ids.add(client.service_id)
    assert len(ids) == 1


@ensureDeferred
async def test_161_versions_without_services(relay: Relay) -> None:
    """Up to version 15 a certificate is nothing to the relay."""
    client = await relay.connect(15, service=make_service())
    assert client.service_id is None
    _, notifier = await notified_queue(client)
    await client.subscribe_notifications(*notifier.own)


@ensureDeferred
async def test_161_service_that_does_not_prove_its_certificate(relay: Relay) -> None:
    service, other = make_service(), make_service()
    foreign = SignedKey.sign(new_key().public, other.key).encode()
    wrong_kind = SignedKey.sign(new_key(Algorithm.X25519).public, service.key).encode()
    for different in (
        {"chain": list(other.chain)},
        {"chain": [service.chain[0]]},
        {"signed_key": foreign},
        {"signed_key": wrong_kind},
        {"signed_key": b"no key"},
    ):
        connection, content = await after_hello(relay, service, **different)
        assert content == BAD_AUTH
        assert await is_closed(connection)


@ensureDeferred
async def test_169_other_role_of_the_same_certificate(relay: Relay) -> None:
    for role, other_role in (
        (Role.NOTIFIER, Role.MESSAGING),
        (Role.MESSAGING, Role.NOTIFIER),
        (Role.PROXY, Role.MESSAGING),
    ):
        service = make_service(role)
        client = await relay.connect(service=service)
        connection, content = await after_hello(relay, as_role(service, other_role))
        assert content == BAD_SERVICE
        assert await is_closed(connection)
        with pytest.raises(HandshakeError, match="HANDSHAKE BAD_SERVICE"):
            await relay.connect(service=as_role(service, other_role))
        # The service is what it was.
        again = await relay.connect(service=service)
        assert again.service_id == client.service_id


# -- NSUB


@at_versions(*VERSIONS)
async def test_162_nsub_in_a_service_session(relay: Relay, version: int) -> None:
    recipient = await relay.connect(version)
    _, notifier = await notified_queue(recipient)
    raw = await relay.raw(version, service=make_service())
    assert await ask(raw, Nsub(), *notifier.own) == err("SERVICE")
    for _ in range(2):
        answer = await ask(raw, Nsub(), *notifier.own, service_signed=True)
        assert answer == Sok(service_id(raw))
    assert await ask(raw, Nsub(), *notifier.own) == err("SERVICE")


@at_versions(*VERSIONS)
async def test_162_nsub_that_a_service_may_not_make(relay: Relay, version: int) -> None:
    recipient = await relay.connect(version)
    await notified_queue(recipient)
    raw = await relay.raw(version, service=make_service())
    assert await ask(raw, Nsub(), new_id(), new_key(), service_signed=True) == err("AUTH")
    assert await ask(raw, Ping()) == Pong()


@at_versions(*VERSIONS)
async def test_162_nsub_takes_over_from_an_ordinary_connection(relay: Relay, version: int) -> None:
    recipient, ordinary = await relay.connect(version), await relay.connect(version)
    queue, notifier = await notified_queue(recipient)
    await ordinary.subscribe_notifications(*notifier.own)
    service = await relay.connect(version, service=make_service())
    await service.subscribe_notifications(*notifier.own)
    assert await next_event(ordinary) == Received(b"", notifier.notifier_id, End())
    await send(recipient, queue)
    message = await next_msg(recipient, queue)
    assert (await next_notification(service, notifier))[0] == message.msg_id
    # And the other way round: then the notifier is the service's no more.
    await ordinary.subscribe_notifications(*notifier.own)
    assert await next_event(service) == Received(b"", notifier.notifier_id, End())
    await send(recipient, queue)
    await next_notification(ordinary, notifier)
    assert await service.subscribe_service_notifications() == 0


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.X25519])
@at_versions(*VERSIONS)
async def test_163_what_each_key_signs(relay: Relay, version: int, algorithm: Algorithm) -> None:
    recipient, service = await relay.connect(version), make_service()
    queue = await make_queue(recipient)
    entity_id, key = (await make_notifier(recipient, queue, algorithm)).own
    raw = await relay.raw(version, service=service)
    signer, fingerprint = raw.session.signer, service_fingerprint(service.chain)
    corr_id, session_key = new_id(), session_of(raw).key
    authorized = raw.session.framing.authorized(corr_id, entity_id, b"NSUB")
    by_entity = signer.authenticator(key, corr_id, fingerprint + authorized)
    by_entity_alone = signer.authenticator(key, corr_id, authorized)
    by_other_entity = signer.authenticator(new_key(), corr_id, fingerprint + authorized)
    by_service = session_key.sign(authorized)
    by_service_too_much = session_key.sign(fingerprint + authorized)
    by_certificate = service.key.sign(authorized)
    for authenticator, signature, expected in (
        (by_entity_alone, by_service, err("AUTH")),
        (by_other_entity, by_service, err("AUTH")),
        (by_entity, by_service_too_much, err("SERVICE")),
        (by_entity, by_certificate, err("SERVICE")),
        (by_entity, new_key().sign(authorized), err("SERVICE")),
        (by_entity_alone, None, err("SERVICE")),
        (by_entity, None, err("SERVICE")),
        (by_entity, by_service, Sok(service_id(raw))),
    ):
        raw.send_transmissions(
            raw.session.framing.transmission(authorized, authenticator, signature)
        )
        assert await raw.next_batch() == [Received(corr_id, entity_id, expected)]


@at_versions(*VERSIONS)
async def test_164_second_session_of_the_service(relay: Relay, version: int) -> None:
    recipient, service = await relay.connect(version), make_service()
    queue, notifier = await notified_queue(recipient)
    first = await relay.connect(version, service=service)
    await first.subscribe_notifications(*notifier.own)
    await send(recipient, queue)
    message = await next_msg(recipient, queue)
    assert (await next_notification(first, notifier))[0] == message.msg_id
    second = await relay.connect(version, service=service)
    await second.subscribe_notifications(*notifier.own)
    assert await next_event(first) == Received(b"", service_id(first), Ends(1))
    await recipient.ack(*queue.own, message.msg_id)
    await send(recipient, queue)
    message = await next_msg(recipient, queue)
    assert (await next_notification(second, notifier))[0] == message.msg_id
    await first.ping()
    assert len(first.events) == 0


@at_versions(*VERSIONS)
async def test_165_ndel(relay: Relay, version: int) -> None:
    recipient = await relay.connect(version)
    deleted, kept = await notified_queue(recipient), await notified_queue(recipient)
    client = await relay.connect(version, service=make_service())
    for _, notifier in (deleted, kept):
        await client.subscribe_notifications(*notifier.own)
    queue, notifier = deleted
    await recipient.delete_notifier(*queue.own)
    assert await next_event(client) == Received(b"", notifier.notifier_id, Deld())
    with refused("AUTH"):
        await client.subscribe_notifications(*notifier.own)
    # The other queue is served as before; what is sent to the first notifies nobody.
    await send(recipient, queue)
    await send(recipient, kept[0])
    await next_notification(client, kept[1])
    assert await client.subscribe_service_notifications() == 1


@at_versions(*VERSIONS)
async def test_165_other_ends_of_a_notifier(relay: Relay, version: int) -> None:
    """NKEY, which takes the notifier's place, and DEL of the queue (smp-server.md §7.2)."""
    recipient = await relay.connect(version)
    client = await relay.connect(version, service=make_service())
    replaced, deleted = await notified_queue(recipient), await notified_queue(recipient)
    for _, notifier in (replaced, deleted):
        await client.subscribe_notifications(*notifier.own)
    queue, former = replaced
    successor = await make_notifier(recipient, queue, key=former.key)
    assert await next_event(client) == Received(b"", former.notifier_id, Deld())
    queue, notifier = deleted
    await recipient.delete(*queue.own)
    assert await next_event(client) == Received(b"", notifier.notifier_id, Deld())
    # The new notifier is not the service's before it has subscribed to it.
    assert await client.subscribe_service_notifications() == 0
    await client.subscribe_notifications(*successor.own)
    other = await relay.raw(version, service=make_service())
    assert await ask(other, Nsubs(), service_id(other), session_of(other).key) == Soks(0)


@at_versions(*VERSIONS)
async def test_166_nsubs(relay: Relay, version: int) -> None:
    recipient, service = await relay.connect(version), make_service()
    queues = [await notified_queue(recipient) for _ in range(2)]
    first = await relay.connect(version, service=service)
    for _, notifier in queues:
        await first.subscribe_notifications(*notifier.own)
    second = await relay.raw(version, service=service)
    for _ in range(2):
        answer = await ask(second, Nsubs(), service_id(second), session_of(second).key)
        assert answer == Soks(2)
    assert await next_event(first) == Received(b"", service_id(first), Ends(2))
    for queue, notifier in queues:
        await send(recipient, queue)
        event = await second.next_message()
        assert (event.corr_id, event.entity_id) == (b"", notifier.notifier_id)
    assert len(first.events) == 0


@at_versions(*VERSIONS)
async def test_166_nsubs_and_what_waited(relay: Relay, version: int) -> None:
    """A service that was away gets what came meanwhile, once it has subscribed."""
    recipient, service = await relay.connect(version), make_service()
    queue, notifier = await notified_queue(recipient)
    first = await relay.connect(version, service=service)
    await first.subscribe_notifications(*notifier.own)
    await first.close()
    await send(recipient, queue)
    message = await next_msg(recipient, queue)
    second = await relay.connect(version, service=service)
    assert await second.subscribe_service_notifications() == 1
    assert (await next_notification(second, notifier))[0] == message.msg_id


@at_versions(*VERSIONS)
async def test_166_who_may_make_nsubs(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, service=make_service())
    ordinary = await relay.raw(version)
    own, key = service_id(raw), session_of(raw).key
    for entity_id, wrong_key in (
        (own, new_key()),
        (own, new_key(Algorithm.X25519)),
        (own, new_key(Algorithm.ED448)),
        (new_id(), key),
    ):
        assert await ask(raw, Nsubs(), entity_id, wrong_key) == err("SERVICE")
    assert await ask(raw, Nsubs(), own, key, service_signed=True) == err("SERVICE")
    assert await ask(ordinary, Nsubs(), own, key) == err("SERVICE")
    # The first service has no queues, so it gets 0.
    assert await ask(raw, Nsubs(), own, key) == Soks(0)


@at_versions(*VERSIONS)
async def test_168_subs(relay: Relay, version: int) -> None:
    ordinary = await relay.raw(version)
    assert await ask(ordinary, Subs(), new_id(), new_key()) == err("SERVICE")
    messaging = await relay.raw(version, service=make_service(Role.MESSAGING))
    own, key = service_id(messaging), session_of(messaging).key
    assert await ask(messaging, Subs(), own, key) == err("CMD PROHIBITED")
    # What is not signed by the service is not prohibited but not the service's.
    assert await ask(messaging, Subs(), own, new_key()) == err("SERVICE")
    notifier = await relay.raw(version, service=make_service())
    own, key = service_id(notifier), session_of(notifier).key
    assert await ask(notifier, Subs(), own, key) == err("CMD PROHIBITED")


def new() -> tuple[New, PrivateKey]:
    """NEW, and the key that authorises it."""
    key = new_key()
    return New(key.public, new_key(Algorithm.X25519).public), key


@at_versions(*VERSIONS)
async def test_170_commands_of_another_role(relay: Relay, version: int) -> None:
    recipient = await relay.connect(version)
    queue, notifier = await notified_queue(recipient)
    notifying = await relay.raw(version, service=make_service())
    command, key = new()
    for signed in (True, False):
        assert await ask(notifying, command, b"", key, service_signed=signed) == err(
            "CMD PROHIBITED"
        )
        assert await ask(notifying, Sub(), *queue.own, service_signed=signed) == err(
            "CMD PROHIBITED"
        )
    commands: list[tuple[Command, bytes, PrivateKey | None]] = [
        (Get(), *queue.own),
        (Send(False, b"hello"), queue.sender_id, None),
        (Lget(), new_id(), None),
    ]
    for command_of_others, entity_id, its_key in commands:
        assert await ask(notifying, command_of_others, entity_id, its_key) == err("CMD PROHIBITED")
    assert await ask(notifying, Rfwd(new_id())) == err("CMD PROHIBITED")
    assert await ask(notifying, Ping()) == Pong()
    routing = await relay.raw(version, service=make_service(Role.PROXY))
    assert await ask(routing, Sub(), *queue.own, service_signed=True) == err("CMD PROHIBITED")
    assert await ask(routing, Rfwd(new_id())) == err("CRYPTO")
    messaging = await relay.raw(version, service=make_service(Role.MESSAGING))
    assert await ask(messaging, Nsub(), *notifier.own, service_signed=True) == err("CMD PROHIBITED")


@conforms(170, 162)
@at_versions(*VERSIONS)
async def test_170_new_in_a_session_of_the_role_messaging(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, service=make_service(Role.MESSAGING))
    command, key = new()
    assert await ask(raw, command, b"", key) == err("SERVICE")
    answer = await ask(raw, command, b"", key, service_signed=True)
    assert isinstance(answer, Ids)
    assert answer.service_id == service_id(raw)
    command.subscribe = False
    assert await ask(raw, command, b"", key, service_signed=True) == err("CMD PROHIBITED")


@conforms(162, 163)
@at_versions(*VERSIONS)
async def test_162_sub_in_a_session_of_the_role_messaging(relay: Relay, version: int) -> None:
    """SUB is signed for the service too, and answered with its id (smp-server.md §3, §5.2)."""
    recipient = await relay.connect(version)
    raw = await relay.raw(version, service=make_service(Role.MESSAGING))
    queue = await make_queue(recipient)
    await recipient.send(queue.sender_id, b"hello")
    message = await next_msg(recipient, queue)
    assert await ask(raw, Sub(), *queue.own) == err("SERVICE")
    assert await ask(raw, Sub(), *queue.own, service_signed=True) == Sok(service_id(raw))
    assert await raw.next_message() == Received(b"", queue.recipient_id, message)
    assert await next_event(recipient) == Received(b"", queue.recipient_id, End())
    # Other commands are not signed for it.
    for command in (Ack(message.msg_id), Get()):
        answer = await ask(raw, command, *queue.own, service_signed=True)
        assert answer == err("SERVICE")
    assert await ask(raw, Ack(message.msg_id), *queue.own) == Ok()


@at_versions(*VERSIONS)
async def test_161_relay_that_asks_for_no_certificates(relays: GetRelay, version: int) -> None:
    """Then a service is an ordinary client (smp-wire.md §6.3); who says more is refused."""
    relay = relays({"protocol.request_client_certificates": "off"})
    service = make_service()
    client = await relay.connect(version, service=service)
    assert client.service_id is None
    _, notifier = await notified_queue(client)
    await client.subscribe_notifications(*notifier.own)
    connection, content = await after_hello(relay, service, version)
    assert content == BAD_AUTH
    assert await is_closed(connection)
