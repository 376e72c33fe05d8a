"""Transmissions of a client (smp-wire.md §9), read back as the relay reads them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from txsimplex.boxes import BoxKey, verify_authenticator
from txsimplex.client.signing import ServiceSession, Signer
from txsimplex.keys import Algorithm, PrivateKey, verify
from txsimplex.smp.commands import Nsub, Ping, Send, Sub
from txsimplex.smp.transmissions import Framing, Transmission, frame

SESSION_ID = bytes(range(32))
SERVER_KEY = PrivateKey(Algorithm.X25519, bytes(range(1, 33)))
QUEUE_KEYS = {
    Algorithm.ED25519: PrivateKey(Algorithm.ED25519, bytes(range(32))),
    Algorithm.ED448: PrivateKey(Algorithm.ED448, bytes(range(57))),
    Algorithm.X25519: PrivateKey(Algorithm.X25519, bytes(range(0x21, 0x41))),
}
CORR_ID = bytes(range(24))
ENTITY_ID = bytes(range(0x32, 0x32 + 24))


def signer(version: int = 18, service: ServiceSession | None = None) -> Signer:
    return Signer(Framing(version, SESSION_ID), SERVER_KEY.public, service)


def read(version: int, transmission: bytes) -> Transmission:
    (result,) = Framing(version, SESSION_ID).read_commands(frame([transmission]))
    assert isinstance(result, Transmission)
    return result


def test_the_authenticator_of_the_specification() -> None:
    sent = signer().transmission(CORR_ID, ENTITY_ID, b"SUB", QUEUE_KEYS[Algorithm.X25519])
    assert read(18, sent).authenticator == bytes.fromhex(
        "d88275da996e3a1cbf46606207a59e10567234ef1e3acd7fa783d969329f3da2"
        "81a0261ffaba38611aa3b9528b571ea6fdc269f7e06f65cf5487c2d1f5bf9dca"
        "ba46eebd2cda908e3c796c635eadd7d9"
    )


@given(
    version=st.sampled_from([6, 7, 10, 15, 16, 18]),
    algorithm=st.sampled_from(list(QUEUE_KEYS)),
    corr_id=st.binary(max_size=255),
    entity_id=st.binary(min_size=1, max_size=255),
    body=st.binary(max_size=300),
)
def test_proofs_hold(
    version: int, algorithm: Algorithm, corr_id: bytes, entity_id: bytes, body: bytes
) -> None:
    key = QUEUE_KEYS[algorithm]
    command = Send(False, body)
    sent = signer(version).transmission(corr_id, entity_id, command.encode(version), key)
    received = read(version, sent)
    assert (received.corr_id, received.entity_id) == (corr_id, entity_id)
    assert received.command == command
    proof, authorized = received.authenticator, received.authorized
    if algorithm is Algorithm.X25519:
        box = BoxKey(SERVER_KEY.exchange(key.public))
        assert verify_authenticator(box, corr_id, authorized, proof)
    else:
        assert verify(key.public, authorized, proof)
    assert received.service_signature is None


def test_without_a_key_there_is_no_proof() -> None:
    received = read(18, signer().transmission(CORR_ID, b"", b"PING"))
    assert received.command == Ping()
    assert received.authenticator == b""


def test_the_service_signs_too() -> None:
    session_key = PrivateKey(Algorithm.ED25519, b"s" * 32)
    fingerprint = hashlib.sha256(b"identity").digest()
    service = ServiceSession(b"service", fingerprint, session_key)
    key = QUEUE_KEYS[Algorithm.ED25519]
    sent = signer(18, service).transmission(CORR_ID, ENTITY_ID, b"NSUB", key, service_signed=True)
    received = read(18, sent)
    assert received.command == Nsub()
    assert received.service_signature is not None
    assert verify(session_key.public, received.authorized, received.service_signature)
    assert verify(key.public, fingerprint + received.authorized, received.authenticator)


def test_no_service_no_signature() -> None:
    with pytest.raises(ValueError, match="no service"):
        signer().transmission(
            CORR_ID, ENTITY_ID, b"SUB", QUEUE_KEYS[Algorithm.ED25519], service_signed=True
        )


def test_keys_that_cannot_authorise() -> None:
    without_key = Signer(Framing(6, SESSION_ID), None)
    with pytest.raises(ValueError, match="gave no key"):
        without_key.transmission(CORR_ID, ENTITY_ID, b"SUB", QUEUE_KEYS[Algorithm.X25519])
    with pytest.raises(ValueError, match="do not sign"):
        signer().transmission(
            CORR_ID, ENTITY_ID, b"SUB", PrivateKey(Algorithm.X448, bytes(range(56)))
        )
    key = QUEUE_KEYS[Algorithm.ED25519]
    sent = without_key.transmission(CORR_ID, ENTITY_ID, b"SUB", key)
    assert read(6, sent).command == Sub()
