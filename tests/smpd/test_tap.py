"""The relay as a process of twistd and as a service: start, reload, stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import LogLevel, capturedLogs, formatEvent

from smpd import tap
from smpd.config import load
from smpd.credentials import read_certificates
from smpd.ctl import run as smpctl
from smpd.session import SessionFactory
from smpd.tap import RelayService
from tests.coroutines import finish, in_reactor, sleep, until
from torcfg.onion_keys import OnionKey
from torcfg.publishing import State
from txsimplex.addresses import Host, RelayLocation, ServerAddress
from txsimplex.block_port import ReceiverFactory
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.session import open_blocks
from txsimplex.client.smp import connect

ROOT = Path(__file__).parents[2]
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A configuration with a password and its certificates."""
    made = smpctl(
        ["init", "--directory", str(tmp_path), "--host", "127.0.0.1", "--no-qr", "--password", "pw"]
    )
    assert made == 0
    configure(tmp_path, "tcp:0:interface=127.0.0.1")
    return tmp_path


def configure(directory: Path, listen: str) -> Path:
    path = directory / "smpd.ini"
    path.write_text(
        f"[server]\nhosts = 127.0.0.1\nlisten = {listen}\n[queues]\npassword = s3cret\n"
    )
    return path


def twistd(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "smpd", "--config", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(path: Path) -> tuple[int, str, str]:
    """Status, stdout and stderr of a relay that does not start."""
    process = twistd(path)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def test_faults_of_the_configuration_end_the_start_with_a_sentence_each(directory: Path) -> None:
    path = directory / "smpd.ini"
    path.write_text("[server]\nlisten = tcp:x\n[queues]\nquota = none\n")
    status, out, err = ended(path)
    assert status == 1
    port = "a port from 0 to 65535 after tcp:"
    assert err.splitlines() == [
        f'{path}, line 2: [server] listen: found "tcp:x"; allowed: {port}.',
        f'{path}, line 4: [queues] quota: found "none"; allowed: a whole number from 1 to 1000000.',
    ]
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("imported", "options", "reactor"),
    [
        ("", [], "FastEPollReactor"),
        # As by plugins of other packages, of which twistd loads all when it has no list of them.
        ("import twisted.internet.reactor", [], "FastEPollReactor"),
        ("", ["--reactor=select"], "SelectReactor"),
        ("", ["--reactor=epoll"], "EPollReactor"),
    ],
)
def test_the_reactor(directory: Path, imported: str, options: list[str], reactor: str) -> None:
    path = directory / "smpd.ini"
    command = [sys.executable, "-c", f"{imported}\n{TWISTD}", "-n", "--pidfile=", *options]
    process = subprocess.Popen(
        [*command, "smpd", "--config", str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = ""
        while "SMP relay ready" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
    finally:
        process.terminate()
        process.communicate(timeout=30)
    (told,) = re.findall(r"reactor class: .*\.(\w+)\.", said)
    assert told == reactor


def test_a_missing_certificate_ends_the_start_with_one_sentence(directory: Path) -> None:
    (directory / "server.key").unlink()
    status, out, err = ended(directory / "smpd.ini")
    assert status == 1
    assert err == f"{directory / 'server.key'} cannot be read: No such file or directory\n"
    assert "Traceback" not in out


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_port_in_use_ends_the_start_with_one_sentence(directory: Path, kind: str) -> None:
    path = directory / "smpd.sock"
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(path))
        local.listen()
        port = other.getsockname()[1]
        listen = f"tcp:{port}:interface=127.0.0.1" if kind == "tcp" else f"unix:{path}"
        status, out, err = ended(configure(directory, listen))
    assert status == 1
    assert f"cannot listen on {listen}: [Errno 98] Address already in use\n" in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (None, 'the database has no tables of this relay: "smpctl database create" makes them'),
        ("postgresql://u:s3cret@127.0.0.1:1/x", "cannot use the database: "),
        ("postgresql://u:s3cret/@127.0.0.1/x", "cannot use the database: where it is cannot be "),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_start_with_one_sentence(
    directory: Path, database: str, where: str | None, sentence: str
) -> None:
    path = directory / "smpd.ini"
    with path.open("a") as file:
        file.write(f"[store]\nkind = postgres\ndatabase = {where or database}\n")
    status, out, err = ended(path)
    assert status == 1
    # In the log, since by then the process may be in the background.
    (line,) = [line for line in (out + err).splitlines() if "#error]" in line]
    assert line.partition("#error] ")[2].startswith(sentence)
    assert "Traceback" not in out + err
    assert "s3cret" not in out + err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_its_connections(directory: Path, number: signal.Signals) -> None:
    process = twistd(directory / "smpd.ini")
    try:
        assert process.stdout is not None
        said = ""
        while "SMP relay ready" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        address = re.search(r"smp://\S+", said)
        assert address is not None
        assert address[0].endswith("@127.0.0.1:5223") is False
        # The password is for the operator's eyes, and logs are for more than those.
        assert "s3cret" not in said
        started = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
        # twistd ends by the signal itself once it has stopped in order.
        assert process.returncode == -number
        assert "Server Shut Down" in out
        assert "Traceback" not in said + out + err
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def service(directory: Path) -> Iterator[RelayService]:
    """A relay in this process."""
    started = start(directory)
    yield started
    finish(stopped(started))


def start(directory: Path) -> RelayService:
    service = RelayService(load(directory / "smpd.ini"))
    service.privilegedStartService()
    service.startService()
    return service


@pytest.mark.parametrize("proxy", ["on", "off"])
@in_reactor
async def test_a_proxy_that_would_show_where_a_hidden_relay_is(directory: Path, proxy: str) -> None:
    """It is said once. The onion service is one of a torrc here, so that no tor is needed."""
    path = configure(directory, "tcp:0:interface=127.0.0.1")
    text = path.read_text().replace("hosts = 127.0.0.1", f"hosts = {'a' * 56}.onion")
    path.write_text(f"{text}[proxy]\nenabled = {proxy}\n")
    with capturedLogs() as events:
        await start(directory).stopService()
    said = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
    sentences = [line for line in said if "shows them where this relay is" in line]
    assert len(sentences) == (1 if proxy == "on" else 0)


@in_reactor
async def test_its_own_tor_ends_last(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By it the last answers get to who came through it."""
    from twisted.internet import reactor

    told: list[object] = []

    class Told(Service):
        def startService(self) -> None:
            told.append("started")

        def stopService(self) -> None:
            told.append(started.sessions.connections)

    monkeypatch.setattr(tap, "own_tor", lambda settings, reactor: Told())
    started = start(directory)
    key_hash = started.sessions.identity.key_hash
    location = RelayLocation((Host.parse("127.0.0.1"),), str(port_of(started)), key_hash)
    client = await connect(TCP4ClientEndpoint(reactor, "127.0.0.1", port_of(started)), location)
    assert started.sessions.connections == 1
    await started.stopService()
    assert told == ["started", 0]
    await client.lost()


@in_reactor
async def test_stopping_does_not_wait_for_who_says_nothing(directory: Path) -> None:
    """Nothing of theirs can be lost; and who finishes TLS only now is closed."""
    from twisted.internet import reactor

    started = start(directory)
    port = port_of(started)
    with socket.create_connection(("127.0.0.1", port)):
        client = await open_blocks(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        await until(lambda: started.sessions.connections == 2)
        begun = time.monotonic()
        await started.stopService()
        # Others have five seconds.
        assert time.monotonic() - begun < 4
        await client.lost()


@pytest.mark.parametrize("former", [signal.SIG_DFL, lambda number, frame: None])
@in_reactor
async def test_sighup_ends_no_process_that_stops(directory: Path, former: Any) -> None:
    """Who had a handler has it again; but in place of the default one nothing is done."""
    before = signal.signal(signal.SIGHUP, former)
    try:
        await start(directory).stopService()
        now = signal.getsignal(signal.SIGHUP)
        assert callable(now)
        assert now is former or former is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("endpoint", ["unix", "haproxy:unix"])
@pytest.mark.parametrize("gone", ["socket", "right to remove it"])
@in_reactor
async def test_a_socket_that_cannot_be_removed_spoils_no_stop(
    directory: Path, endpoint: str, gone: str
) -> None:
    """What is under way is answered and all connections are closed; only what is odd is logged."""
    from twisted.internet import reactor

    within = directory / "sockets"
    within.mkdir()
    path = within / "smpd.sock"
    configure(directory, f"{endpoint}:{path} tcp:0:interface=127.0.0.1")
    started = start(directory)
    port = started.listener.ports[1].getHost().port  # type: ignore[attr-defined]
    key_hash = started.sessions.identity.key_hash
    location = RelayLocation((Host.parse("127.0.0.1"),), str(port), key_hash)
    client = await connect(TCP4ClientEndpoint(reactor, "127.0.0.1", port), location)
    path.unlink()
    if gone != "socket":
        # What is there cannot be removed by who runs as root either.
        path.mkdir()
    with capturedLogs() as events:
        await started.stopService()
    await client.lost()
    assert started.sessions.connections == 0
    said = [formatEvent(event) for event in events if event["log_level"] >= LogLevel.warn]
    if gone == "socket":
        assert said == []
    else:
        (sentence,) = said
        assert sentence.startswith("a port could not be closed in order: ")


async def stopped(service: RelayService) -> None:
    await service.stopService()


def port_of(service: RelayService) -> int:
    host: Any = service.listener.ports[0].getHost()
    port: int = host.port
    return port


async def shown_leaf(endpoint: IStreamClientEndpoint) -> bytes:
    """The online certificate that a new connection is shown."""
    connection = await open_blocks(endpoint)
    leaf = connection.transport.peer_chain[0]
    connection.abort()
    return leaf


@in_reactor
async def test_sighup_brings_a_new_certificate_to_new_connections(
    service: RelayService, directory: Path
) -> None:
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port_of(service))
    before = await shown_leaf(endpoint)
    assert before == read_certificates(directory / "server.crt")[0]
    rotated = smpctl(["--config", str(directory / "smpd.ini"), "certificate", "rotate"])
    assert rotated == 0
    assert await shown_leaf(endpoint) == before
    service.reload.reload()
    after = await shown_leaf(endpoint)
    assert after == read_certificates(directory / "server.crt")[0]
    assert after != before


@in_reactor
async def test_a_certificate_of_another_identity_is_not_taken(
    service: RelayService, directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from twisted.internet import reactor

    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port_of(service))
    before = await shown_leaf(endpoint)
    other = tmp_path_factory.mktemp("other")
    assert smpctl(["init", "--directory", str(other), "--host", "x.example", "--no-qr"]) == 0
    for name in ("server.crt", "server.key", "ca.crt"):
        (directory / name).write_bytes((other / name).read_bytes())
    service.reload.reload()
    assert await shown_leaf(endpoint) == before
    (directory / "server.key").unlink()
    service.reload.reload()
    assert await shown_leaf(endpoint) == before


@in_reactor
async def test_a_port_of_all_addresses_is_reached_by_ipv6_and_ipv4(directory: Path) -> None:
    from twisted.internet import reactor

    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    configure(directory, "tcp:0")
    service = start(directory)
    try:
        port = port_of(service)
        by_ipv4 = await shown_leaf(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        by_ipv6 = await shown_leaf(TCP6ClientEndpoint(reactor, "::1", port))
        assert by_ipv4 == by_ipv6
    finally:
        await service.stopService()


@in_reactor
async def test_without_ipv6_it_listens_by_ipv4(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twisted.internet import reactor

    ordinary = socket.socket

    def without_ipv6(family: int = -1, *rest: Any, **named: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return ordinary(family, *rest, **named)

    configure(directory, "tcp:0")
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", without_ipv6)
        service = start(directory)
    try:
        host: Any = service.listener.ports[0].getHost()
        assert host.type == "TCP"
        assert host.host == "0.0.0.0"
        await shown_leaf(TCP4ClientEndpoint(reactor, "127.0.0.1", host.port))
    finally:
        await service.stopService()


def onion_endpoint(directory: Path) -> str:
    return f"onionservice:5223:key={directory}/onion.key:control=unix\\:{directory}/no-tor"


@in_reactor
async def test_an_endpoint_that_is_an_onion_service(directory: Path) -> None:
    """It gets TLS on the socket itself, and says how far it is."""
    from twisted.internet import reactor

    configure(directory, onion_endpoint(directory))
    service = start(directory)
    path = directory / "onion.key.sock"
    try:
        (port,) = service.listener.onion_ports
        assert await shown_leaf(UNIXClientEndpoint(reactor, str(path)))
        assert isinstance(port.factory, ReceiverFactory)
        await until(lambda: port.publisher.status.state is State.AWAY)
    finally:
        await service.stopService()
    assert port.publisher.status.state is State.STOPPED
    assert not path.exists()


@pytest.mark.parametrize("processes", [1, 2])
@in_reactor
async def test_a_relay_tells_of_its_endpoints_that_are_onion_services(
    directory: Path, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from twisted.internet import reactor

    path = configure(directory, onion_endpoint(directory))
    path.write_text(path.read_text().replace("[queues]", f"processes = {processes}\n[queues]"))
    process = twistd(path)
    try:
        assert process.stdout is not None
        said = ""
        while "SMP relay ready" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        told = re.search(r"smp://\S+", said)
        assert told is not None
        onion = OnionKey.decode((directory / "onion.key").read_bytes()).address
        assert told[0].endswith(f"@127.0.0.1,{onion}")
        capsys.readouterr()
        assert smpctl(["--config", str(path), "address"]) == 0
        printed = ServerAddress.parse(capsys.readouterr().out.strip())
        assert str(printed.without_password()) == told[0]
        assert await shown_leaf(UNIXClientEndpoint(reactor, f"{directory}/onion.key.sock"))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert "Traceback" not in said + out + err
    finally:
        process.kill()
        process.wait()
    assert not (directory / "onion.key.sock").exists()


def test_an_onion_service_whose_key_cannot_be_used_ends_the_start(directory: Path) -> None:
    key = directory / "onion.key"
    key.touch(0o600)
    key.write_bytes(b"nonsense")
    status, out, err = ended(configure(directory, onion_endpoint(directory)))
    assert status == 1
    assert f"cannot listen on {onion_endpoint(directory)}: " in out + err
    assert f"{key} cannot be used: not a file hs_ed25519_secret_key of tor" in out + err
    assert "Traceback" not in out + err
    assert key.read_bytes() == b"nonsense"


# -- connections through Unix sockets


def onion_socket(directory: Path, kind: str, more: str = "") -> Path:
    """The path of a Unix socket that a relay in this directory is to listen on."""
    path = directory / "onion.sock"
    listen = f"{kind}:{path}:mode=600"
    if kind == "onionservice":
        control = f"unix\\:{directory}/no-tor"
        listen = f"{kind}:443:key={directory}/onion.key:socket={path}:control={control}"
    (directory / "smpd.ini").write_text(
        f"[server]\nlisten = {listen} {more}\naddress_port = 443\n[tor]\nmost_connections = 2\n"
    )
    return path


def connected(path: Path) -> socket.socket:
    """A connection that says nothing."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    return client


def tell(client: socket.socket, circuit: int) -> socket.socket:
    """Says what tor says in front of a connection."""
    client.sendall(f"PROXY TCP6 fc00:dead:beef:4dad::0:{circuit:x} ::1 1 42\r\n".encode())
    return client


def is_closed(client: socket.socket) -> bool:
    """Whether the relay has closed a connection."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize("kind", ["unix", "haproxy:unix", "onionservice"])
@in_reactor
async def test_so_many_connections_come_through_a_unix_socket(directory: Path, kind: str) -> None:
    """Of one more nothing is left but to go; others still get in, and so does the next."""
    from twisted.internet import reactor

    path = onion_socket(directory, kind, "tcp:0:interface=127.0.0.1")
    service = start(directory)
    port = service.listener.ports[1].getHost().port  # type: ignore[attr-defined]
    sessions = service.sessions
    assert isinstance(sessions, SessionFactory)
    try:
        first, second = connected(path), connected(path)
        await until(lambda: len(sessions.by_unix) == 2)
        third = connected(path)
        await until(lambda: is_closed(third))
        assert len(sessions.by_unix) == 2
        await shown_leaf(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        first.close()
        await until(lambda: len(sessions.by_unix) == 1)
        fourth = connected(path)
        await until(lambda: len(sessions.by_unix) == 2)
        assert not any(map(is_closed, (second, fourth)))
        for client in (second, third, fourth):
            client.close()
        await until(lambda: not sessions.by_unix)
    finally:
        await stopped(service)


@in_reactor
async def test_circuits_are_counted_at_a_proxys_endpoint(directory: Path) -> None:
    """How many there are can be had of the listener."""
    path = onion_socket(directory, "haproxy:unix")
    with (directory / "smpd.ini").open("a") as file:
        file.write("most_streams = 1\n")
    service = start(directory)
    circuits = service.listener.circuits
    try:
        first, refused = [tell(connected(path), 7) for _ in range(2)]
        await until(lambda: is_closed(refused) or is_closed(first))
        other = tell(connected(path), 8)
        await until(lambda: circuits.connections == 2)
        assert circuits.count == 2
        for client in (first, refused, other):
            client.close()
        await until(lambda: circuits.connections == circuits.count == 0)
    finally:
        await stopped(service)


@in_reactor
async def test_each_edge_has_its_share_of_them(directory: Path) -> None:
    """What one that has enough refuses gets in at the other when it comes again."""
    from twisted.internet import reactor

    path = onion_socket(directory, "unix", "\nprocesses = 2")
    endpoint = UNIXClientEndpoint(reactor, str(path))

    async def get_in(attempts: int) -> BlockConnection | None:
        for _ in range(attempts):
            try:
                return await open_blocks(endpoint)
            except DisconnectedError:
                await sleep(0.01)
        return None

    service = start(directory)
    try:
        await until(path.exists)
        there = [await get_in(2000) for _ in range(2)]
        assert all(there)
        assert await get_in(20) is None
        first, second = there
        assert first is not None
        assert second is not None
        first.abort()
        third = await get_in(2000)
        assert third is not None
        assert await get_in(20) is None
        for each in (second, third):
            each.abort()
    finally:
        await stopped(service)
