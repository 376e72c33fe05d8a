"""The handshake: smp-wire.md §6, §7, against the reference's own runs (handshake.json)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.strategies import mutated
from tests.txsimplex.vectors import Vector, det, load, name_of
from txsimplex.boxes import BlockChain, PlainBlocks
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Role
from txsimplex.smp.handshake import (
    BAD_AUTH,
    BAD_VERSION,
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

T = TypeVar("T")
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


# -- beyond the vectors


def result(receive: Callable[[bytes], T], content: bytes) -> T | HandshakeError:
    """What `receive` makes of a block: what it returns or the one error that it may raise."""
    try:
        return receive(content)
    except HandshakeError as error:
        return error


def made_up(**changes: object) -> Vector:
    return {**_SOME_SESSION, **changes}


def service_vector(**changes: object) -> Vector:
    name = "session/service/messaging"
    (vector,) = (vector for vector in load("handshake", "session") if vector["name"] == name)
    return {**vector, **changes}


version_ranges = st.tuples(st.integers(4, 20), st.integers(4, 20)).map(
    lambda pair: [min(pair), max(pair)]
)


@given(
    version_ranges,
    version_ranges,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "smp/1"]),
    st.booleans(),
)
def test_both_sides_agree(
    relay_range: list[int],
    client_range: list[int],
    proxy: bool,
    key: bool,
    alpn: str | None,
    service: bool,
) -> None:
    """Also proxies of versions 11 to 13, where the reference's sides do not (PROXY_OF_11)."""
    vector = (service_vector if service else made_up)(
        server_range=relay_range,
        client_range=client_range,
        proxy=proxy,
        client_key=key,
        alpn=alpn,
    )
    relay, client = relay_of(vector), client_of(vector)
    common = VersionRange(*client_range).intersection(
        VersionRange(*(relay_range if alpn else (6, 6)))
    )
    at_client = result(lambda _: client.receive(relay.hello()), b"")
    if isinstance(at_client, HandshakeError):
        assert at_client.error == BAD_VERSION
        assert common is None or proxy or not relay_range[0] <= 6 <= relay_range[1]
        return
    assert common is not None
    at_relay = relay.receive(at_client.hello)
    assert at_relay.version == at_client.version <= common.maximum
    assert at_relay.version in common
    assert at_relay.encrypted is at_client.encrypted
    assert at_client.encrypted is (at_client.version >= 11 and key and not proxy)
    if at_relay.version >= 7:
        assert at_relay.secret == at_client.secret
        assert (at_relay.secret is not None) is key
    assert (at_relay.service is not None) is at_client.service
    assert at_client.service is (service and at_client.version >= 16)
    for sealing, opening in (
        (at_relay.blocks()[1], at_client.blocks()[0]),
        (at_client.blocks()[1], at_relay.blocks()[0]),
    ):
        assert opening.open(sealing.seal(b"content")) == b"content"


def test_a_relay_without_version_6_offers_nothing_without_alpn() -> None:
    """§4.1."""
    relay = relay_of(made_up(server_range=[7, 18], alpn=None))
    with pytest.raises(HandshakeError) as caught:
        relay.hello()
    assert caught.value.error == BAD_VERSION
    with pytest.raises(HandshakeError) as caught:
        relay.receive(bytes.fromhex(_SOME_SESSION["client_to_server"][0]))
    assert caught.value.error == BAD_VERSION


@given(mutated(st.just(bytes.fromhex(service_vector()["client_to_server"][0]))))
def test_client_hellos_changed_on_the_way(content: bytes) -> None:
    vector = service_vector()
    genuine = relay_of(vector).receive(bytes.fromhex(vector["client_to_server"][0])).service
    assert genuine is not None
    session = result(relay_of(vector).receive, content)
    if isinstance(session, HandshakeError):
        assert session.answer in (None, b"EHANDSHAKE BAD_AUTH")
        assert (session.answer is not None) is (session.error == BAD_AUTH)
    elif session.service is not None:
        # The role is not signed; everything else about a service is.
        assert replace(session.service, role=genuine.role) == genuine


@given(mutated(st.just(bytes.fromhex(_SOME_SESSION["server_to_client"][0]))))
def test_server_hellos_changed_on_the_way(content: bytes) -> None:
    genuine = x25519(_SOME_SESSION["server_session_private_raw"]).public
    session = result(client_of(_SOME_SESSION).receive, content)
    if isinstance(session, HandshakeError):
        assert session.answer is None
    else:
        assert session.relay_key in (None, genuine)


@given(st.binary(max_size=100))
def test_arbitrary_blocks(content: bytes) -> None:
    for receive in (relay_of(_SOME_SESSION).receive, client_of(_SOME_SESSION).receive):
        with pytest.raises(HandshakeError):
            receive(content)
    found = result(service_id, content)
    if isinstance(found, HandshakeError):
        assert found.answer is None
    else:
        assert content.startswith(b"R" + bytes((len(found),)) + found)


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_client_chain": []},
        {"tls_client_chain": service_vector()["service"]["chain"][:1]},
        {"tls_client_chain": service_vector()["service"]["chain"][::-1]},
        {"chain": ["00"], "tls_client_chain": ["00"]},
        {
            "chain": service_vector()["service"]["chain"] * 2 + ["00"],
            "tls_client_chain": service_vector()["service"]["chain"] * 2 + ["00"],
        },
        {"sign_key": {"alg": "Ed25519", "private_raw": "00" * 32}},
        {"sign_key": {"alg": "Ed448", "private_raw": "00" * 57}},
    ],
)
def test_services_that_prove_nothing(changes: Vector) -> None:
    """§6.3: BAD_AUTH in the third block, which a client reads as such."""
    vector = service_vector()
    vector["service"] = {**vector["service"], **changes}
    relay = relay_of(vector)
    client = client_of(vector).receive(relay.hello())
    with pytest.raises(HandshakeError) as caught:
        relay.receive(client.hello)
    assert caught.value.error == BAD_AUTH
    answer = caught.value.answer
    assert answer is not None
    with pytest.raises(HandshakeError) as caught:
        service_id(answer)
    assert caught.value.error == BAD_AUTH


def test_the_session_key_of_a_service_is_of_ed25519() -> None:
    """§6.3."""
    vector = service_vector()
    service = vector["service"]
    identity = ServiceIdentity(
        Role.MESSAGING,
        chain(service["chain"]),
        signing_key(service["sign_key"]),
        x25519(vector["client_session_private_raw"]),
    )
    client = ClientHandshake(
        VersionRange(6, 18),
        bytes.fromhex(vector["session_id"]),
        bytes.fromhex(vector["client_key_hash"]),
        chain(vector["tls_server_chain"]),
        None,
        service=identity,
    )
    relay = relay_of(vector)
    with pytest.raises(HandshakeError) as caught:
        relay.receive(client.receive(relay.hello()).hello)
    assert caught.value.error == BAD_AUTH


def test_a_client_without_the_chain_of_tls_trusts_no_key() -> None:
    client = client_of(made_up(tls_server_chain=[]))
    with pytest.raises(HandshakeError) as caught:
        client.receive(bytes.fromhex(_SOME_SESSION["server_to_client"][0]))
    assert caught.value.error == BAD_AUTH


def test_secrets_are_not_shown() -> None:
    relay = relay_of(_SOME_SESSION)
    client = client_of(_SOME_SESSION).receive(relay.hello())
    session = relay.receive(client.hello)
    assert session.secret is not None
    for side in (session, client):
        assert repr(session.secret) not in repr(side)
