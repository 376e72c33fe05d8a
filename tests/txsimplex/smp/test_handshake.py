"""The handshake: smp-wire.md §6, §7, against the reference's own runs (handshake.json)."""

from __future__ import annotations

import pytest

from tests.txsimplex.vectors import Vector, det, load, name_of
from txsimplex.boxes import BlockChain, PlainBlocks
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Role
from txsimplex.smp.handshake import (
    ClientHandshake,
    ClientSession,
    HandshakeError,
    RelayHandshake,
    RelayIdentity,
    RelaySession,
    ServiceIdentity,
    Session,
    accept_service,
    refuse_service,
    service_id,
)
from txsimplex.smp.versions import VersionRange

ROLES = {"SRMessaging": Role.MESSAGING, "SRNotifier": Role.NOTIFIER, "SRProxy": Role.PROXY}
SERVICE_ID = det(24, "eid/service")
SESSION_ID = det(32, "sess")
ERRORS = {
    "TEHandshake {handshakeErr = PARSE}": "HANDSHAKE PARSE",
    "TEHandshake {handshakeErr = IDENTITY}": "HANDSHAKE IDENTITY",
    "TEHandshake {handshakeErr = BAD_AUTH}": "HANDSHAKE BAD_AUTH",
    "TEHandshake {handshakeErr = BAD_SERVICE}": "HANDSHAKE BAD_SERVICE",
    "TEVersion": "VERSION",
    "TEBadSession": "SESSION",
}

PROXY_OF_11 = "session/v11/proxy"
"""The one session where we differ: a proxy whose own maximum is 11 (SURPRISES.md, small notes).

The reference's relay encrypts there and its client does not; our client chooses version 10.
"""
NON_MINIMAL_KEY = "client-hello-raw/v7-key-nonminimal-der"
"""The reference throws at this key (SURPRISES.md 4); to us it is a bad key as any other."""


def x25519(raw: str) -> PrivateKey:
    return PrivateKey(Algorithm.X25519, bytes.fromhex(raw))


def signing_key(given: Vector) -> PrivateKey:
    return PrivateKey(Algorithm[given["alg"].upper()], bytes.fromhex(given["private_raw"]))


def chain(given: list[str]) -> list[bytes]:
    return [bytes.fromhex(certificate) for certificate in given]


def relay_of(vector: Vector) -> RelayHandshake:
    service = vector["service"] or {}
    identity = RelayIdentity(
        chain(vector["server_chain"]),
        signing_key(vector["server_sign_key"]),
        bytes.fromhex(vector["server_key_hash"]),
    )
    return RelayHandshake(
        identity,
        VersionRange(*vector["server_range"]),
        bytes.fromhex(vector["session_id"]),
        x25519(vector["server_session_private_raw"]),
        None if vector["alpn"] is None else vector["alpn"].encode(),
        chain(service.get("tls_client_chain", [])),
    )


def client_of(vector: Vector) -> ClientHandshake:
    service = vector["service"]
    identity = None
    if service is not None and service["client_cert_requested"]:
        identity = ServiceIdentity(
            ROLES[service["role"]],
            chain(service["chain"]),
            signing_key(service["sign_key"]),
            PrivateKey(Algorithm.ED25519, bytes.fromhex(vector["service_session_private_raw"])),
        )
    return ClientHandshake(
        VersionRange(*vector["client_range"]),
        bytes.fromhex(vector["client_sees_session_id"]),
        bytes.fromhex(vector["client_key_hash"]),
        chain(vector["tls_server_chain"]),
        x25519(vector["client_session_private_raw"]) if vector["client_key"] else None,
        proxy=vector["proxy"],
        service=identity,
    )


def check_session(session: Session, result: Vector) -> None:
    """What both sides' results have in common, against the reference's."""
    assert session.version == result["version"]
    assert [session.versions.minimum, session.versions.maximum] == result["range"]
    assert session.encrypted is result["block_encryption"]
    # "auth" of a client is nothing at all when the server sent no key.
    secret = (result["auth"] or {}).get("secret")
    assert (None if session.secret is None else session.secret.hex()) == secret
    kinds = {type(blocks) for blocks in session.blocks()}  # type: ignore[attr-defined]
    assert kinds == ({BlockChain} if session.encrypted else {PlainBlocks})


def check_relay(session: RelaySession, result: Vector) -> None:
    check_session(session, result)
    service = result["auth"]["service"]
    if service is None:
        assert session.service is None
        return
    assert session.service is not None
    assert session.service.role is ROLES[service["role"]]
    assert session.service.fingerprint.hex() == service["fingerprint"]
    assert session.service.session_key.encode().hex() == service["session_public_spki"]


def check_client(session: ClientSession, result: Vector) -> None:
    check_session(session, result)
    if result["auth"] is None:
        assert session.relay_key is None
        return
    assert session.relay_key is not None
    assert session.relay_key.encode().hex() == result["auth"]["server_public_spki"]


def error_of(result: Vector) -> str:
    """The text of the transport error in a result."""
    return ERRORS[result["error"]]


@pytest.mark.parametrize("vector", load("handshake", "session"), ids=name_of)
def test_relay_in_whole_handshakes(vector: Vector) -> None:
    relay = relay_of(vector)
    sent = vector["server_to_client"]
    assert relay.hello().hex() == sent[0]
    if not vector["client_to_server"]:
        return  # the client gave up; the error the vector has is that of an empty block
    result = vector["server_result"]
    if result.get("error") == "TEHandshake {handshakeErr = BAD_SERVICE}":
        # The record of the service is the store's matter, so this is found after `receive`.
        session = relay.receive(bytes.fromhex(vector["client_to_server"][0]))
        assert session.service is not None
        refusal = refuse_service()
        assert refusal.answer is not None
        assert (str(refusal.error), refusal.answer.hex()) == (error_of(result), sent[1])
        return
    if "error" in result:
        with pytest.raises(HandshakeError) as caught:
            relay.receive(bytes.fromhex(vector["client_to_server"][0]))
        assert str(caught.value.error) == error_of(result)
        answer = caught.value.answer
        assert ([] if answer is None else [answer.hex()]) == sent[1:]
        return
    session = relay.receive(bytes.fromhex(vector["client_to_server"][0]))
    check_relay(session, result)
    if session.service is None:
        assert sent[1:] == []
    else:
        assert [accept_service(SERVICE_ID).hex()] == sent[1:]


@pytest.mark.parametrize("vector", load("handshake", "session"), ids=name_of)
def test_client_in_whole_handshakes(vector: Vector) -> None:
    client = client_of(vector)
    hello = bytes.fromhex(vector["server_to_client"][0])
    result = vector["client_result"]
    if not vector["client_to_server"]:
        with pytest.raises(HandshakeError) as caught:
            client.receive(hello)
        assert str(caught.value.error) == error_of(result)
        assert caught.value.answer is None
        return
    session = client.receive(hello)
    if vector["name"] == PROXY_OF_11:
        assert session.version == 10
        assert not session.encrypted
        return
    assert session.hello.hex() == vector["client_to_server"][0]
    assert session.service is (len(vector["server_to_client"]) > 1)
    if not session.service:
        check_client(session, result)
        return
    response = bytes.fromhex(vector["server_to_client"][1])
    if "error" in result:
        with pytest.raises(HandshakeError) as caught:
            service_id(response)
        assert str(caught.value.error) == error_of(result)
        return
    check_client(session, result)
    assert service_id(response).hex() == result["auth"]["service_id"]


@pytest.mark.parametrize("vector", load("handshake", "client-hello-raw"), ids=name_of)
def test_relay_with_crafted_client_hellos(vector: Vector) -> None:
    relay = relay_of(
        {
            **_SOME_SESSION,
            "server_key_hash": vector["server_key_hash"],
            "server_range": vector["server_range"],
            "alpn": vector["alpn"],
        }
    )
    assert vector["second_server_block"] is None
    content = bytes.fromhex(vector["hello"])
    result = vector["server_result"]
    if vector["name"] == NON_MINIMAL_KEY:
        session = relay.receive(content)
        assert (session.version, session.secret) == (7, None)
    elif "error" in result:
        with pytest.raises(HandshakeError) as caught:
            relay.receive(content)
        assert str(caught.value.error) == error_of(result)
        assert caught.value.answer is None
    else:
        check_relay(relay.receive(content), result)


@pytest.mark.parametrize("vector", load("handshake", "server-hello-raw"), ids=name_of)
def test_client_with_crafted_server_hellos(vector: Vector) -> None:
    client = client_of(
        {
            **_SOME_SESSION,
            "client_key_hash": vector["client_key_hash"],
            "client_range": vector["client_range"],
            "client_sees_session_id": vector["session_id"],
            "tls_server_chain": vector["tls_server_chain"],
        }
    )
    content = bytes.fromhex(vector["hello"])
    result = vector["client_result"]
    if "error" in result:
        with pytest.raises(HandshakeError) as caught:
            client.receive(content)
        assert str(caught.value.error) == error_of(result)
    else:
        session = client.receive(content)
        assert session.hello.hex() == vector["client_hello"]
        check_client(session, result)


_SOME_SESSION: Vector = next(
    vector for vector in load("handshake", "session") if vector["name"] == "session/v18"
)
