"""Conformance O: clients that choose between proxy and direct connections (smp-proxy.md §4)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from tests.conformance.clients import (
    GetRelay,
    Relay,
    acknowledge,
    deliver,
    make_queue,
    make_secured_queue,
    new_id,
    new_key,
    next_msg,
    refused,
)
from tests.conformance.relays import Credentials, RelayProcess
from tests.coroutines import finish, in_reactor, until
from txsimplex.addresses import Host, RelayLocation, Scheme, ServerAddress
from txsimplex.client.errors import DisconnectedError, HandshakeError, IdentityError, ProxyError
from txsimplex.client.network import Network
from txsimplex.client.routing import Fallback, Router, RoutingMode, RoutingRules
from txsimplex.smp.commands import LinkData

PROXY = {"proxy.local_networks": "on"}
"""Settings of a proxy that may connect to relays on this machine."""
reactor: Any = _reactor


class Watched(Network):
    """A network that remembers which ports it was asked to connect to."""

    ports: list[int]

    def endpoint(self, *arguments: Any) -> IStreamClientEndpoint:
        """See `Network`."""
        self.ports.append(int(arguments[1].port))
        return super().endpoint(*arguments)


class Protecting(Watched):
    """One that would not show the client's address."""

    def protects(self, location: RelayLocation) -> bool:
        """See `Network`."""
        return True


class Routers:
    """Makes routers; they are closed after the test."""

    def __init__(self) -> None:
        self.made: list[Router] = []

    def __call__(
        self,
        proxy: RelayProcess | Relay,
        mode: RoutingMode = RoutingMode.ALWAYS,
        fallback: Fallback = Fallback.PROHIBITED,
        *,
        known: RelayLocation | None = None,
        protected: bool = False,
        password: str | None = None,
    ) -> tuple[Router, list[int]]:
        """A router, and the ports that it connects to by itself."""
        network = Protecting() if protected else Watched()
        object.__setattr__(network, "ports", [])
        process = proxy.process if isinstance(proxy, Relay) else proxy
        via = ServerAddress(Scheme.SMP, process.location, password)
        relays = frozenset() if known is None else frozenset({known})
        rules = RoutingRules(mode, fallback, relays)
        router = Router(reactor, via=via, rules=rules, network=network)
        self.made.append(router)
        return router, network.ports


@pytest.fixture
def routers() -> Iterator[Routers]:
    """Makes routers."""
    routers = Routers()
    yield routers
    for router in routers.made:
        finish(router.close())


@pytest.mark.parametrize("mode", RoutingMode)
@in_reactor
async def test_192_each_mode(relays: GetRelay, routers: Routers, mode: RoutingMode) -> None:
    proxy, relay = relays(PROXY), relays({})
    recipient = await relay.connect()
    where = relay.process.location
    queue, key = await make_secured_queue(recipient)
    for known in (None, where):
        for protected in (False, True):
            router, ports = routers(proxy, mode, known=known, protected=protected)
            await deliver(router.relay(where), recipient, queue, key)
            direct = (
                mode is RoutingMode.NEVER
                or (mode is not RoutingMode.ALWAYS and known is not None)
                or (mode is RoutingMode.UNPROTECTED and protected)
            )
            assert ports == [(relay if direct else proxy).process.port]


@in_reactor
async def test_183_commands_of_senders(relays: GetRelay, routers: Routers) -> None:
    relay = relays({})
    recipient = await relay.connect()
    router, _ = routers(relays(PROXY))
    routed = router.relay(ServerAddress(Scheme.SMP, relay.process.location, "of no use here"))
    queue, key = await make_queue(recipient), new_key()
    await routed.sender_secure(queue.sender_id, key)
    await deliver(routed, recipient, queue, key)
    with refused("AUTH"):
        await routed.send(queue.sender_id, b"")
    data = LinkData(b"fixed", b"user")
    one_time = await make_queue(recipient, link=data)
    assert one_time.created.link_id is not None
    assert (await routed.secure_link(one_time.created.link_id, new_key())).data == data


@in_reactor
async def test_191_sessions_are_shared(relays: GetRelay, routers: Routers) -> None:
    """Between relays, and between those who ask at the same time."""
    proxy, others = relays(PROXY), [relays({}), relays({"queues.quota": 200})]
    router, ports = routers(proxy)

    async def send(where: RelayLocation) -> None:
        with refused("AUTH"):
            await router.relay(where).send(new_id(), b"")

    sending = [send(relay.process.location) for relay in others * 5]
    await gatherResults([Deferred.fromCoroutine(each) for each in sending])
    assert ports == [proxy.process.port]


@in_reactor
async def test_195_a_relay_that_is_its_own_proxy(relays: GetRelay, routers: Routers) -> None:
    relay = relays(PROXY)
    recipient = await relay.connect()
    router, ports = routers(relay)
    queue, key = await make_secured_queue(recipient)
    await deliver(router.relay(relay.process.location), recipient, queue, key)
    assert ports == [relay.process.port]


@in_reactor
async def test_190_the_password_of_the_proxy(relays: GetRelay, routers: Routers) -> None:
    """Without the right one nothing is sent, and not directly either."""
    proxy, where = relays({**PROXY, "queues.password": "secret"}), relays({}).process.location
    for password in (None, "wrong"):
        router, ports = routers(proxy, fallback=Fallback.ALLOWED, password=password)
        with refused("PROXY BASIC_AUTH"):
            await router.relay(where).send(new_id(), b"")
        assert ports == [proxy.process.port]
    router, _ = routers(proxy, password="secret")
    with refused("AUTH"):
        await router.relay(where).send(new_id(), b"")


# -- when the proxy does not reach the relay


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("fallback", Fallback)
@in_reactor
async def test_198_a_relay_that_is_too_old(
    relays: GetRelay, routers: Routers, fallback: Fallback, *, protected: bool
) -> None:
    proxy, old = relays(PROXY), relays({"protocol.maximum_version": 7})
    router, ports = routers(proxy, fallback=fallback, protected=protected)
    routed = router.relay(old.process.location)
    if fallback is Fallback.ALLOWED or (fallback is Fallback.PROTECTED and protected):
        recipient = await old.connect()
        queue = await make_queue(recipient)
        for body in (b"first", b"second"):
            await routed.send(queue.sender_id, body)
            message = await next_msg(recipient, queue)
            assert queue.open(message).body == body
            await acknowledge(recipient, queue, message)
        assert ports == [proxy.process.port, old.process.port]
        return
    for _ in range(2):
        with refused("PROXY BROKER TRANSPORT VERSION"):
            await routed.send(new_id(), b"")
    assert ports == [proxy.process.port]


@pytest.mark.parametrize("fallback", [Fallback.ALLOWED, Fallback.PROHIBITED])
@in_reactor
async def test_198_a_proxy_that_is_too_old(
    relays: GetRelay, routers: Routers, fallback: Fallback
) -> None:
    proxy, relay = relays({"protocol.maximum_version": 7}), relays({})
    router, ports = routers(proxy, fallback=fallback)
    routed = router.relay(relay.process.location)
    if fallback is Fallback.ALLOWED:
        with refused("AUTH"):
            await routed.send(new_id(), b"")
        assert ports == [proxy.process.port, relay.process.port]
        return
    with pytest.raises(HandshakeError, match="VERSION"):
        await routed.send(new_id(), b"")
    assert ports == [proxy.process.port]


class Accepting(Factory):
    """Counts connections, and ends them."""

    noisy = False

    def __init__(self) -> None:
        self.count = 0

    def buildProtocol(self, address: object) -> Protocol | None:
        """None, which closes the connection."""
        self.count += 1
        return None


@pytest.mark.parametrize("fallback", Fallback)
@in_reactor
async def test_197_a_relay_that_fails_sees_only_the_proxy(
    relays: GetRelay, routers: Routers, fallback: Fallback
) -> None:
    """One connection, which is the proxy's; for 30 seconds it makes no second one (§5)."""
    accepting = Accepting()
    port = reactor.listenTCP(0, accepting, interface="127.0.0.1")
    try:
        number: int = port.getHost().port
        where = RelayLocation((Host.parse("127.0.0.1"),), str(number), os.urandom(32))
        router, ports = routers(proxy := relays(PROXY), fallback=fallback, protected=True)
        for _ in range(3):
            with refused("PROXY BROKER NETWORK"):
                await router.relay(where).send(new_id(), b"")
        assert accepting.count == 1
        assert ports == [proxy.process.port]
    finally:
        await port.stopListening()


@in_reactor
async def test_249_a_relay_of_another_identity(
    relays: GetRelay, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that shows another relay than it was asked for learns nothing, nor does the relay."""
    proxy, relay, other = relays(PROXY), relays({}), relays({"queues.quota": 200})
    asked = replace(relay.process.location, key_hash=os.urandom(32))
    router, ports = routers(proxy, fallback=Fallback.ALLOWED)
    encode = RelayLocation.encode

    def redirected(location: RelayLocation) -> bytes:
        return encode(other.process.location if location == asked else location)

    monkeypatch.setattr(RelayLocation, "encode", redirected)
    with pytest.raises(IdentityError):
        await router.relay(asked).send(new_id(), b"")
    assert ports == [proxy.process.port]


@in_reactor
async def test_no_fallback_where_the_proxy_is_away(
    relays: GetRelay, routers: Routers, tmp_path: Path
) -> None:
    """Whoever can cut the client off from its proxy does not learn whom it writes to."""
    where = relays({}).process.location
    with RelayProcess(tmp_path, Credentials.make(), PROXY) as proxy:
        router, ports = routers(proxy, fallback=Fallback.ALLOWED)
        proxy.end()
        with pytest.raises(DisconnectedError):
            await router.relay(where).send(new_id(), b"")
        assert ports == [proxy.port]


# -- sessions that end


@in_reactor
async def test_199_a_relay_that_was_restarted(
    relays: GetRelay, routers: Routers, tmp_path: Path
) -> None:
    """The session is opened again by itself, and the client connects to nobody."""
    router, ports = routers(proxy := relays(PROXY))
    with RelayProcess(tmp_path, Credentials.make()) as process:
        location = process.location
        routed = router.relay(location)
        for _ in range(2):
            with refused("AUTH"):
                await routed.send(new_id(), b"")
            process.end()
            process.start_again(location)
        sending = [routed.send(new_id(), b"") for _ in range(5)]
        for each in [Deferred.fromCoroutine(each) for each in sending]:
            with refused("AUTH"):
                await each
    assert ports == [proxy.process.port]


@in_reactor
async def test_199_a_relay_that_stays_away(
    relays: GetRelay, routers: Routers, tmp_path: Path
) -> None:
    """It is asked for again once, and what the proxy says then is the answer."""
    router, ports = routers(proxy := relays(PROXY), fallback=Fallback.ALLOWED)
    with RelayProcess(tmp_path, Credentials.make()) as process:
        routed = router.relay(process.location)
        with refused("AUTH"):
            await routed.send(new_id(), b"")
        process.end()
        with pytest.raises(ProxyError, match="PROXY BROKER NETWORK"):
            await routed.send(new_id(), b"")
    assert ports == [proxy.process.port]


@in_reactor
async def test_a_proxy_that_was_restarted(
    relays: GetRelay, routers: Routers, tmp_path: Path
) -> None:
    where = relays({}).process.location
    with RelayProcess(tmp_path, Credentials.make(), PROXY) as proxy:
        router, ports = routers(proxy)
        routed = router.relay(where)
        with refused("AUTH"):
            await routed.send(new_id(), b"")
        location = proxy.location
        (client,) = router._clients
        proxy.end()
        await client.lost()
        proxy.start_again(location)
        with refused("AUTH"):
            await routed.send(new_id(), b"")
        assert ports == [proxy.port] * 2


@in_reactor
async def test_a_router_that_is_closed(relays: GetRelay, routers: Routers) -> None:
    router, ports = routers(relays(PROXY))
    routed = router.relay(relays({}).process.location)
    with refused("AUTH"):
        await routed.send(new_id(), b"")
    await router.close()
    with pytest.raises(DisconnectedError):
        await routed.send(new_id(), b"")
    assert len(ports) == 1
    opening, _ = routers(relays(PROXY))
    sending = Deferred.fromCoroutine(opening.relay(relays({}).process.location).send(b"", b""))
    await opening.close()
    with pytest.raises(DisconnectedError):
        await sending
    await until(lambda: not any(client.connected for client in opening._clients))
