"""From an endpoint's description to a port (smp-wire.md §4.4)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import endpoints, tcp
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from tests.coroutines import finish, in_reactor, until
from tests.txsimplex.block_peers import Echo, Receivers, Recorder, block, connect
from txsimplex import block_port
from txsimplex.block_port import BlockPort, UnixBlockPort, UnixPort
from txsimplex.blocks_transport import TransportLimits
from txsimplex.listening import adopt, listen


@pytest.fixture
def ports() -> Iterator[list[IListeningPort]]:
    """Ports that are closed when the test is over."""
    made: list[IListeningPort] = []
    yield made

    async def stop() -> None:
        for port in made:
            stopped: Any = port.stopListening()
            await stopped

    finish(stop())


async def listening(
    ports: list[IListeningPort], description: str, receivers: Receivers, **options: Any
) -> Any:
    from twisted.internet import reactor

    port = await listen(reactor, description, receivers, **options)
    ports.append(port)
    return port


async def echoes(port: IListeningPort, receivers: Receivers) -> None:
    client = Recorder()
    await connect(port, client)
    transport = await client.until_secured()
    for number in range(20):
        transport.sendBlock(block(number))
    await until(lambda: len(client.blocks) == 20)
    assert client.blocks == [block(number) for number in range(20)]
    transport.loseConnection()
    await client.until_lost()
    await receivers.made[-1].until_lost()


@pytest.mark.parametrize(
    ("description", "family", "host"),
    [
        ("tcp:0", socket.AF_INET, "0.0.0.0"),
        ("tcp:0:interface=127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("tcp6:0:interface=\\:\\:1", socket.AF_INET6, "::1"),
    ],
)
@in_reactor
async def test_tcp(description: str, family: int, host: str, ports: list[IListeningPort]) -> None:
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    receivers = Receivers(Echo)
    port = await listening(ports, description, receivers)
    assert isinstance(port, BlockPort)
    assert port.socket.family == family
    assert port.getHost().host == host
    await echoes(port, receivers)


@in_reactor
async def test_a_unix_socket_left_behind_is_replaced(
    tmp_path: Path, ports: list[IListeningPort]
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    receivers = Receivers(Echo)
    port = await listening(ports, f"unix:{path}:mode=600", receivers)
    await echoes(port, receivers)
    with pytest.raises(CannotListenError, match="Address already in use"):
        await listening(ports, f"unix:{path}:mode=600", receivers)
    await echoes(port, receivers)


@in_reactor
async def test_the_ipv6_wildcard_serves_ipv4_too(ports: list[IListeningPort]) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    receivers = Receivers()
    port = await listening(ports, "tcp6:0", receivers)
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    await until(lambda: len(receivers.made) == 1)
    client.close()
    await receivers.made[0].until_lost()


@in_reactor
async def test_a_unix_socket(tmp_path: Path, ports: list[IListeningPort]) -> None:
    receivers = Receivers(Echo)
    path = tmp_path / "socket"
    port = await listening(ports, f"unix:{path}:mode=620", receivers)
    assert isinstance(port, UnixBlockPort)
    assert path.stat().st_mode & 0o777 == 0o620
    await echoes(port, receivers)


@in_reactor
async def test_any_other_endpoint_gets_streams(ports: list[IListeningPort]) -> None:
    """A connection behind a proxy that tells the client's address in front of TLS."""
    receivers = Receivers()
    port = await listening(ports, "haproxy:tcp:0:interface=127.0.0.1", receivers)
    assert type(port) is tcp.Port
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 5223\r\n")
    await until(lambda: len(receivers.made) == 1)
    client.sendall(b"no TLS")
    await receivers.made[0].until_lost()
    client.close()


@in_reactor
async def test_any_other_endpoint_on_a_unix_socket(
    tmp_path: Path, ports: list[IListeningPort]
) -> None:
    port = await listening(ports, f"haproxy:unix:{tmp_path / 'socket'}", Receivers())
    assert type(port) is UnixPort


class HandedOver:
    """What systemd passes to a service."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = list(descriptors)

    def inheritedDescriptors(self) -> list[int]:
        return self._descriptors


@in_reactor
async def test_a_socket_of_systemds_gets_streams(
    ports: list[IListeningPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = socket.create_server(("127.0.0.1", 0))
    made.setblocking(False)
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", HandedOver(made.detach()))
    receivers = Receivers(Echo)
    port = await listening(ports, "systemd:domain=INET:index=0", receivers)
    await echoes(port, receivers)


@in_reactor
async def test_the_backlog_is_long_unless_it_is_said(
    ports: list[IListeningPort],
) -> None:
    assert (await listening(ports, "tcp:0:interface=127.0.0.1", Receivers())).backlog == 1024
    said = await listening(ports, "tcp:0:interface=127.0.0.1:backlog=7", Receivers())
    assert said.backlog == 7


@in_reactor
async def test_limits_reach_the_connections(ports: list[IListeningPort]) -> None:
    receivers = Receivers()
    limits = TransportLimits(setup_time=0.1)
    port = await listening(ports, "tcp:0:interface=127.0.0.1", receivers, limits=limits)
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    await until(lambda: bool(receivers.made and receivers.made[0].reasons))
    client.close()


@in_reactor
async def test_a_port_that_is_taken(ports: list[IListeningPort]) -> None:
    first = await listening(ports, "tcp:0:interface=127.0.0.1", Receivers(), reuse_port=True)
    description = f"tcp:{first.getHost().port}:interface=127.0.0.1"
    with pytest.raises(CannotListenError):
        await listening(ports, description, Receivers())
    await listening(ports, description, Receivers(), reuse_port=True)


@pytest.mark.parametrize("description", ["", "tcp", "nonsense:1", "tcp:port", "tcp:0:colour=red"])
@in_reactor
async def test_a_description_of_nothing(description: str, ports: list[IListeningPort]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        await listening(ports, description, Receivers())


@pytest.mark.parametrize(
    "description", ["tcp:0:interface=127.0.0.1", "tcp6:0:interface=\\:\\:1", "unix"]
)
@in_reactor
async def test_a_socket_that_listens_already(
    description: str, tmp_path: Path, ports: list[IListeningPort]
) -> None:
    """As an edge process takes it from the core: what one leaves, another goes on with."""
    from twisted.internet import reactor

    path = tmp_path / "socket"
    if description == "unix":
        description = f"unix:{path}"
    port = await listening(ports, description, Receivers(Echo), reuse_port=True)
    port.stopReading()
    for _ in range(2):
        receivers = Receivers(Echo)
        adopted: Any = adopt(reactor, socket.dup(port.fileno()), receivers)
        await echoes(port, receivers)
        await adopted.stopListening()
    assert path.exists() == description.startswith("unix")


@in_reactor
async def test_who_refuses_leaves_the_next_to_others(
    tmp_path: Path, ports: list[IListeningPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that share a socket; when nobody else takes it, it is refused, too."""
    from twisted.internet import reactor

    monkeypatch.setattr(block_port, "_REST", 2.0)
    path = tmp_path / "socket"
    shared = await listening(ports, f"unix:{path}", Receivers())
    shared.stopReading()
    full, other = Receivers(lambda: None), Receivers()
    ports.append(adopt(reactor, socket.dup(shared.fileno()), full))
    port: Any = adopt(reactor, socket.dup(shared.fileno()), other)
    ports.append(port)
    port.stopReading()

    def connected() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    async def is_refused(client: socket.socket) -> None:
        client.setblocking(False)
        await until(lambda: ended(client))
        client.close()

    await is_refused(connected())
    port.startReading()
    clients = [connected() for _ in range(20)]
    await until(lambda: len(other.made) == 20)
    for client in clients:
        client.close()
    for receiver in other.made:
        await receiver.until_lost()
    port.stopReading()
    await is_refused(connected())


def ended(client: socket.socket) -> bool:
    """Whether the other end has closed."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
