"""Contexts: what is agreed on, and with whom (smp-wire.md §4)."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThread

from tests.coroutines import finish, in_reactor
from tests.txsimplex.block_peers import (
    YEAR,
    Credentials,
    Receivers,
    Recorder,
    Records,
    connect,
    connect_raw,
    context_of_server,
    credentials,
    stream_of,
)
from txsimplex import openssl
from txsimplex.block_port import BlockPort
from txsimplex.issuing import make_authority
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.tls import CredentialsError, client_context, server_context

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
UNREACHABLE = "this combination of pyOpenSSL and OpenSSL cannot be told so"


def limited_to(context: SSL.Context, version: int) -> SSL.Context:
    context.set_max_proto_version(version)
    return context


class Pair:
    """Both ends of a TLS connection in memory."""

    def __init__(self, server: SSL.Context, client: SSL.Context) -> None:
        self.server = SSL.Connection(server, None)
        self.server.set_accept_state()
        self.client = SSL.Connection(client, None)
        self.client.set_connect_state()
        self.bytes_from_server = b""

    def shake_hands(self) -> None:
        for _ in range(6):
            self._step(self.client)
            self._pass(self.client, self.server)
            self._step(self.server)
            self.bytes_from_server += self._pass(self.server, self.client)

    @staticmethod
    def _step(end: SSL.Connection) -> None:
        with contextlib.suppress(SSL.WantReadError):
            end.do_handshake()

    @staticmethod
    def _pass(source: SSL.Connection, target: SSL.Connection) -> bytes:
        try:
            data = source.bio_read(65536)
        except SSL.WantReadError:
            return b""
        target.bio_write(data)
        return data


def shaken(server: SSL.Context, client: SSL.Context) -> Pair:
    pair = Pair(server, client)
    pair.shake_hands()
    return pair


@pytest.fixture
def listening() -> Iterator[Any]:
    """Makes ports."""
    from twisted.internet import reactor

    ports: list[BlockPort] = []

    def listen(receivers: Receivers) -> BlockPort:
        port = BlockPort(0, receivers, interface="127.0.0.1", reactor=reactor)
        port.startListening()
        ports.append(port)
        return port

    yield listen

    async def stop() -> None:
        for port in ports:
            stopped: Deferred[None] = port.stopListening()
            await stopped

    finish(stop())


async def s_client(port: IListeningPort, *arguments: str, text: str = "") -> str:
    """What OpenSSL's own client prints about a connection."""
    address: Any = port.getHost()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{address.port}", *arguments]
    run = lambda: subprocess.run(  # noqa: E731
        command, input=text, capture_output=True, text=True, timeout=20, check=False
    )
    done = await deferToThread(run)
    return str(done.stdout + done.stderr)


# -- versions, ciphers, groups, signatures


@pytest.mark.parametrize(
    ("version", "cipher", "size"),
    [
        (TLS13, "TLS_CHACHA20_POLY1305_SHA256", 32),
        (TLS12, "ECDHE-ECDSA-CHACHA20-POLY1305", 12),
    ],
)
@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448])
def test_the_cipher_and_the_size_of_the_session_id_follow_from_the_version(
    version: int, cipher: str, size: int, algorithm: Algorithm
) -> None:
    client = limited_to(client_context(alpn=(b"smp/1",)), version)
    pair = shaken(context_of_server(credentials(algorithm)), client)
    assert pair.server.get_cipher_name() == cipher
    finished = pair.client.get_finished()
    assert finished is not None
    assert len(finished) == size
    assert pair.server.get_peer_finished() == finished


def test_tls_1_3_is_preferred() -> None:
    pair = shaken(context_of_server(), client_context(alpn=()))
    assert pair.server.get_protocol_version_name() == "TLSv1.3"


@in_reactor
async def test_tls_1_1_is_refused(listening: Any) -> None:
    answer = await s_client(listening(Receivers()), "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in answer


@pytest.mark.parametrize(
    "arguments",
    [
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_3", "-groups", "P-256:P-384"),
        ("-tls1_3", "-sigalgs", "ECDSA+SHA256:RSA-PSS+SHA256"),
    ],
    ids=["suite", "cipher", "group", "signature"],
)
@in_reactor
async def test_what_the_network_does_not_use_is_refused(
    arguments: tuple[str, ...], listening: Any
) -> None:
    answer = await s_client(listening(Receivers()), *arguments)
    assert "Cipher is (NONE)" in answer


@pytest.mark.parametrize(
    ("groups", "agreed", "retried"),
    [
        ("X25519:X448", "X25519", False),
        ("X448:X25519", "X448", False),
        ("X448", "X448", False),
        # A share for a group that the server does not know, as an app's share for X448 is to a
        # server without X448: it asks for another by HelloRetryRequest.
        ("P-256:X448:X25519", None, True),
    ],
)
@in_reactor
async def test_the_group_is_that_of_the_clients_key_share(
    groups: str, agreed: str | None, retried: bool, listening: Any
) -> None:
    receivers = Receivers()
    answer = await s_client(listening(receivers), "-tls1_3", "-groups", groups, "-msg")
    assert "Cipher is TLS_CHACHA20_POLY1305_SHA256" in answer
    assert receivers.made[0].times_secured == 1
    assert (answer.count("ClientHello") == 2) is retried
    if agreed is not None:
        assert f"Server Temp Key: {agreed}" in answer


@in_reactor
async def test_x25519_can_be_had_of_a_client_that_prefers_x448(listening: Any) -> None:
    receivers = Receivers(context=context_of_server(groups=(b"X25519",)))
    port = listening(receivers)
    answer = await s_client(port, "-tls1_3", "-groups", "X448:X25519", "-msg")
    if "Server Temp Key: X448" in answer:
        pytest.skip(UNREACHABLE)
    assert "Server Temp Key: X25519" in answer
    assert answer.count("ClientHello") == 2
    assert receivers.made[0].times_secured == 1


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
@in_reactor
async def test_openssls_own_client_is_served(version: str, listening: Any) -> None:
    receivers = Receivers()
    answer = await s_client(listening(receivers), version, "-alpn", "smp/1", "-showcerts")
    assert "ALPN protocol: smp/1" in answer
    assert answer.count("BEGIN CERTIFICATE") >= 2
    assert "Acceptable client certificate CA names" not in answer
    [session] = receivers.made
    assert session.times_secured == 1
    assert session.transport.alpn == b"smp/1"


# -- ALPN (§4.1)


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ((), None),
        ((b"smp/1",), b"smp/1"),
        ((b"http/1.1", b"smp/1"), b"http/1.1"),
        ((b"h2",), b"h2"),
        ((b"xftp/1", b"smp/1"), b"smp/1"),
    ],
)
@in_reactor
async def test_the_first_offer_that_the_server_knows_is_taken(
    offered: tuple[bytes, ...], agreed: bytes | None, listening: Any
) -> None:
    receivers, client = Receivers(), Recorder()
    await connect(listening(receivers), client, alpn=offered)
    transport = await client.until_secured()
    assert transport.alpn == agreed
    server = await receivers.made[0].until_secured()
    assert server.alpn == agreed
    transport.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@pytest.mark.parametrize("version", [TLS12, TLS13])
@in_reactor
async def test_offers_without_overlap_end_in_an_alert(version: int, listening: Any) -> None:
    receivers = Receivers()
    context = limited_to(client_context(alpn=(b"xftp/1", b"h3")), version)
    client = await connect_raw(listening(receivers), Records(context))
    await client.ready
    assert client.failure is not None
    assert "no application protocol" in str(client.failure)
    await client.until_lost()
    await receivers.made[0].until_lost()
    assert receivers.made[0].times_secured == 0


# -- certificates


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448])
@in_reactor
async def test_each_side_sees_the_chain_of_the_other(
    version: int, algorithm: Algorithm, listening: Any
) -> None:
    own = credentials(algorithm, b"client")
    theirs = credentials(algorithm)
    receivers, client = Receivers(context=context_of_server(theirs)), Recorder()
    context = client_context(alpn=(b"smp/1",), chain=own.chain, private_key=own.key)
    await connect(listening(receivers), client, context=limited_to(context, version))
    await client.until_secured()
    [server] = receivers.made
    await server.until_secured()
    assert client.peer_chain == theirs.chain
    assert server.peer_chain == own.chain
    client.transport.loseConnection()
    await server.until_lost()
    await client.until_lost()


@in_reactor
async def test_a_chain_of_one_is_seen_as_one(listening: Any) -> None:
    own = credentials(seed=b"client")
    receivers, client = Receivers(), Recorder()
    context = client_context(alpn=(b"smp/1",), chain=own.chain[:1], private_key=own.key)
    await connect(listening(receivers), client, context=context)
    await receivers.made[0].until_secured()
    assert receivers.made[0].peer_chain == own.chain[:1]
    client.transport.abortConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@in_reactor
async def test_a_long_chain_is_seen_whole(listening: Any) -> None:
    """Whether it is too long is for the receiver to say."""
    random = stream_of(b"long")
    key = PrivateKey.generate(Algorithm.ED25519, random)
    chain = [make_authority(key, YEAR, random, common_name="root")]
    for number in range(8):
        below = PrivateKey.generate(Algorithm.ED25519, random)
        issuer = (chain[0], key)
        name = f"authority {number}"
        chain.insert(0, make_authority(below, YEAR, random, common_name=name, issuer=issuer))
        key = below
    receivers, client = Receivers(), Recorder()
    context = client_context(alpn=(), chain=chain, private_key=key.encode())
    await connect(listening(receivers), client, context=context)
    await client.until_secured()
    await receivers.made[0].until_secured()
    assert receivers.made[0].peer_chain == tuple(chain)
    client.transport.loseConnection()
    await receivers.made[0].until_lost()
    await client.until_lost()


@pytest.mark.parametrize("asked", [True, False])
def test_a_client_without_certificate_is_welcome(asked: bool) -> None:
    server = context_of_server(request_client_certificate=asked)
    pair = shaken(server, client_context(alpn=()))
    assert pair.server.get_peer_certificate() is None
    assert pair.server.get_peer_finished()


def test_a_server_that_does_not_ask_gets_no_certificate() -> None:
    own = credentials(seed=b"client")
    server = context_of_server(request_client_certificate=False)
    client = client_context(alpn=(), chain=own.chain, private_key=own.key)
    assert shaken(server, client).server.get_peer_certificate() is None


def other_key(kind: str) -> bytes:
    key: Any = x25519.X25519PrivateKey.generate()
    if kind == "P-256":
        key = ec.generate_private_key(ec.SECP256R1())
    encoded: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return encoded


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        ((), credentials().key, "empty"),
        ((b"no certificate",), credentials().key, "cannot be read"),
        (credentials().chain, b"no key", "cannot be read"),
        (credentials().chain, b"", "cannot be read"),
        (credentials().chain, credentials(seed=b"client").key, "not that of"),
        (credentials().chain, credentials(Algorithm.ED448).key, "not that of"),
        (credentials().chain, other_key("P-256"), "neither"),
        (credentials().chain, other_key("X25519"), "neither"),
    ],
    ids=["empty", "chain", "key", "no key", "other", "other algorithm", "P-256", "X25519"],
)
def test_credentials_that_cannot_be_used_are_refused(
    chain: tuple[bytes, ...], key: bytes, message: str
) -> None:
    with pytest.raises(CredentialsError, match=message) as caught:
        server_context(chain, key)
    assert key.hex() not in str(caught.value) or not key
    with pytest.raises(CredentialsError, match=message):
        client_context(alpn=(), chain=chain, private_key=key)


def test_no_error_is_left_in_openssls_queue() -> None:
    own = Credentials(credentials().chain, credentials(seed=b"client").key)
    with pytest.raises(CredentialsError):
        context_of_server(own)
    assert shaken(context_of_server(), client_context(alpn=())).server.get_peer_finished()


# -- no resumption, no renegotiation


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
@in_reactor
async def test_no_session_is_resumed(version: str, listening: Any, tmp_path: Path) -> None:
    receivers = Receivers(GoodbyeAfterTLS)
    port = listening(receivers)
    session = str(tmp_path / "session")
    first = await s_client(port, version, "-sess_out", session, "-ign_eof")
    assert "Cipher is " in first
    if not Path(session).exists():
        # Neither a ticket nor a session id was issued: there is nothing to present.
        return
    second = await s_client(port, version, "-sess_in", session, "-ign_eof")
    assert "New, TLSv1" in second
    assert "Reused" not in second
    assert len(receivers.made) == 2


class GoodbyeAfterTLS(Recorder):
    def secured(self, transport: Any) -> None:
        super().secured(transport)
        transport.loseConnection()


@in_reactor
async def test_there_are_no_tickets_where_openssl_can_be_told(listening: Any) -> None:
    context = context_of_server()
    if not openssl.set_no_tickets(context):
        pytest.skip(UNREACHABLE)
    port = listening(Receivers(GoodbyeAfterTLS, context))
    for version in ("-tls1_3", "-tls1_2"):
        answer = await s_client(port, version, "-msg", "-ign_eof")
        assert "Cipher is (NONE)" not in answer
        assert "NewSessionTicket" not in answer


@in_reactor
async def test_renegotiation_is_refused(listening: Any) -> None:
    receivers = Receivers()
    port = listening(receivers)
    answer = await s_client(port, "-tls1_2", "-msg", text="R\nQ\n")
    assert "no_renegotiation" in answer
    assert answer.count("ClientHello") == 2
    assert answer.count("ServerHello,") + answer.count("ServerHello\n") == 1
    await receivers.made[0].until_lost()


# -- where OpenSSL is out of reach


def test_contexts_without_the_private_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_library", None)
    monkeypatch.setattr(openssl, "_lib", None)
    server, client = context_of_server(), client_context(alpn=(b"smp/1",))
    monkeypatch.undo()
    pair = shaken(server, client)
    assert pair.server.get_alpn_proto_negotiated() == b"smp/1"
    finished = pair.client.get_finished()
    assert finished is not None
    # Without the suites of TLS 1.3 in our hands there is only 1.2.
    public = hasattr(SSL.Context, "set_tls13_ciphersuites")
    assert len(finished) == (32 if public else 12)
    assert pair.server.get_peer_finished() == finished
