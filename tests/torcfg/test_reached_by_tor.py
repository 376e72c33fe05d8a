"""Onion services on a real tor, and a Tor network of the tests' own."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from tests.conformance.clients import (
    GetRelay,
    Relay,
    deliver,
    make_secured_queue,
    pause,
    refused,
)
from tests.conformance.versions import at_versions
from tests.e2e.tor_network import TorNetwork
from tests.torcfg.tors import (
    BY_TOR,
    NOWHERE,
    PORT,
    REACHED,
    control_of,
    is_refused,
    logged,
    publish,
    reach,
    reactor,
    target,
    use_key,
    works,
)
from torcfg.client_keys import ClientKey
from torcfg.onion_keys import KeyFileError, OnionKey
from torcfg.onion_services import OnionService, ProofOfWork
from torcfg.publishing import State, Status
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host
from txsimplex.client.proxied import through

pytestmark = BY_TOR


@ensureDeferred
async def test_a_relay_is_reached_by_its_address(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        await works(user, relay, service.key.address)


@ensureDeferred
async def test_several_ports_a_limit_of_streams_and_proof_of_work(
    relays: GetRelay, host: TorProcess, user: TorProcess
) -> None:
    """The ports are two relays'. Whether tor offers proof of work or not, nothing is lost."""
    relay, other = relays({}), relays({"queues.quota": 5})
    places = [f"127.0.0.1:{each.process.port}" for each in (relay, other)]
    service = OnionService(((PORT, places[0]), (443, places[1])), streams=8)
    async with publish(host, service) as published:
        await published.becomes(State.PUBLISHED)
        await works(user, relay, published.key.address)
        await (await reach(user, other, published.key.address, port=443)).ping()
    defended = replace(service, proof_of_work=ProofOfWork())
    async with publish(host, defended) as published:
        while published.publisher.status.state not in (State.PUBLISHED, State.AWAY):
            await pause(0.1)
        if published.publisher.status.state is State.AWAY:
            assert "tor refuses: 512" in published.publisher.status.detail
        else:
            await works(user, relay, published.key.address)


@ensureDeferred
async def test_a_tor_that_hides_nothing(
    relay: Relay, network: TorNetwork, host: TorProcess, user: TorProcess, tmp_path: Path
) -> None:
    """It has services of a single hop and no others, which no other tor has."""
    single = TorProcess(reactor(), tmp_path / "tor", single_hop=True, include=network.torrc)
    single.startService()
    try:
        async with publish(single, target(relay, single_hop=True)) as service:
            await service.becomes(State.PUBLISHED)
            await works(user, relay, service.key.address)
        for tor, hop in ((single, False), (host, True)):
            async with publish(tor, target(relay, single_hop=hop)) as service:
                await service.becomes(State.AWAY)
                assert "tor refuses: 512" in service.publisher.status.detail
    finally:
        ended = single.stopService()
        assert ended is not None
        await ended


@ensureDeferred
async def test_it_goes_when_it_is_stopped_and_comes_back_with_its_address(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    key = OnionKey.generate(os.urandom)
    for _ in range(2):
        async with publish(host, target(relay), key) as service:
            await service.becomes(State.PUBLISHED)
            await works(user, relay, key.address)
        control = await control_of(host)
        assert await control.get_info_raw("onions/current") == "onions/current="
        control.transport.abortConnection()


@ensureDeferred
async def test_tor_is_killed(relay: Relay, host: TorProcess, user: TorProcess) -> None:
    """It is started again, and the service comes back by itself."""
    async with publish(host, target(relay)) as service:
        for _ in range(2):
            await service.becomes(State.PUBLISHED)
            await works(user, relay, service.key.address)
            said, pid = len(service.said), host.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await service.becomes(State.AWAY, said)
            await service.becomes(State.PUBLISHED, said)
            assert host.pid != pid
        await works(user, relay, service.key.address)


@ensureDeferred
async def test_the_control_connection_is_lost(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        said = len(service.said)
        connection = service.publisher._tor
        assert connection is not None
        connection.close()
        await service.becomes(State.AWAY, said)
        await service.becomes(State.PUBLISHED, said)
        await works(user, relay, service.key.address)


@at_versions(8, 14, 18)
async def test_a_proxy_reaches_a_relay_that_is_an_onion_service_only(
    relays: GetRelay, host: TorProcess, socks_port: int, version: int
) -> None:
    """smp-proxy.md §5.2, over a real Tor network; without one nothing is looked up."""
    relay, proxy = relays({}), relays({"proxy.socks_proxy": f"127.0.0.1:{socks_port}"})
    without = relays({})
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        where = replace(
            relay.process.location, hosts=(Host.parse(service.key.address),), port=str(PORT)
        )
        recipient, client = await relay.connect(), await proxy.connect(version)
        routed = await through(client, where, timeout=REACHED)
        queue, key = await make_secured_queue(recipient)
        await deliver(routed, recipient, queue, key)
        with refused("PROXY BROKER NETWORK"):
            await through(await without.connect(version), where)


@ensureDeferred
async def test_clients_that_are_authorized(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    """Only those with a key. Who is removed is disconnected, and not let in any more."""
    keys = {name: ClientKey.generate(os.urandom) for name in ("alice", "bob")}
    allowed: set[str] | None = None

    def clients() -> list[str] | None:
        return None if allowed is None else [keys[name].public for name in allowed]

    async with publish(host, target(relay), clients=clients) as service:
        address = service.key.address
        control = await control_of(user)

        async def change(names: set[str]) -> None:
            nonlocal allowed
            allowed, said = names, len(service.said)
            await service.publisher.republish()
            await service.becomes(State.PUBLISHED, said)

        await service.becomes(State.PUBLISHED)
        await works(user, relay, address)
        stranger = await reach(user, relay, address, "stranger's")
        await change({"alice"})
        await stranger.lost()
        # Not even by the circuit that had been there.
        await is_refused(user, relay, address, "stranger's")
        await use_key(control, address, keys["alice"])
        await works(user, relay, address)
        alice = await reach(user, relay, address, "alice's")
        await change({"alice", "bob"})
        # Nobody has lost anything.
        await alice.ping()
        await change({"bob"})
        await alice.lost()
        await is_refused(user, relay, address, "alice's")
        await use_key(control, address, keys["bob"])
        await works(user, relay, address)
        await change(set())
        await is_refused(user, relay, address)
        control.transport.abortConnection()


@ensureDeferred
async def test_clients_whose_keys_cannot_be_read(host: TorProcess) -> None:
    """The service is not published then: it would be open, or closed to those it is for."""
    readable = False

    def clients() -> None:
        if not readable:
            raise KeyFileError("the key of one of its clients cannot be used")

    async with publish(host, NOWHERE, clients=clients) as service:
        await service.becomes(State.AWAY)
        assert str(service.publisher.status).endswith(
            ": the key of one of its clients cannot be used"
        )
        control = await control_of(host)
        assert await control.get_info_raw("onions/current") == "onions/current="
        control.transport.abortConnection()
        readable = True
        await service.becomes(State.PUBLISHED)


@ensureDeferred
async def test_clients_whose_keys_cannot_be_read_any_more(host: TorProcess) -> None:
    """Who is to get in no more would still be: it is away, and says so to who has changed them."""
    keys: list[str] | None = [ClientKey.generate(os.urandom).public]

    def clients() -> list[str]:
        if keys is None:
            raise KeyFileError("the key of one of its clients cannot be used")
        return keys

    async with publish(host, NOWHERE, clients=clients) as service:
        await service.becomes(State.PUBLISHED)
        said, before = len(service.said), keys
        keys = None
        await service.publisher.republish()
        away = Status(State.AWAY, "the key of one of its clients cannot be used")
        assert service.publisher.status == away
        # With each attempt to publish it, the same.
        await pause(3.0)
        assert service.said[said:] == [away]
        keys = before
        await service.becomes(State.PUBLISHED, said)
        assert [each.state for each in service.said[said + 1 :]] == [
            State.PUBLISHING,
            State.PUBLISHED,
        ]


@ensureDeferred
async def test_stopping_while_clients_change(host: TorProcess) -> None:
    """Nothing is said any more after that it has stopped."""
    allowed = [ClientKey.generate(os.urandom).public]
    async with publish(host, NOWHERE, clients=lambda: tuple(allowed)) as service:
        await service.becomes(State.PUBLISHED)
        allowed += [ClientKey.generate(os.urandom).public]
        changing = Deferred.fromCoroutine(service.publisher.republish())
        assert service.publisher.status.state is State.PUBLISHED
    await changing
    assert service.said[-1] == Status(State.STOPPED)


@ensureDeferred
async def test_a_fault_of_our_own(host: TorProcess) -> None:
    """Whatever it is, the service comes back; the log has where it was, but no key."""
    faults = [RuntimeError("secret"), RuntimeError("secret")]

    def clients() -> None:
        if faults:
            raise faults.pop()

    with logged() as lines:
        async with publish(host, NOWHERE, clients=clients) as service:
            await service.becomes(State.PUBLISHED)
            states = [each.state for each in service.said]
            assert states.count(State.AWAY) == 1
            assert Status(State.AWAY, "a fault of the relay: RuntimeError") in service.said
    assert sum("in clients" in line for line in lines) == 2
    assert not any("secret" in line for line in lines)


@ensureDeferred
async def test_relays_do_not_know_each_other(
    relays: GetRelay, host: TorProcess, user: TorProcess
) -> None:
    """Two services of one tor have addresses of their own, and lead to their own relays."""
    first, second = relays({}), relays({"queues.quota": 5})
    async with publish(host, target(first)) as one, publish(host, target(second)) as other:
        await gatherResults(
            [Deferred.fromCoroutine(each.becomes(State.PUBLISHED)) for each in (one, other)]
        )
        assert one.key.address != other.key.address
        await works(user, first, one.key.address)
        await works(user, second, other.key.address)
