"""Making certificates, and their PEM (docs/spec/smp-ops.md §3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import det
from txsimplex import pem
from txsimplex.certificates import (
    Certificate,
    CertificateError,
    Fault,
    ServerIdentity,
    check_server_chain,
    fingerprint,
)
from txsimplex.encoding import ParseError
from txsimplex.issuing import make_authority, make_online, renew_online
from txsimplex.keys import Algorithm, PrivateKey

AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
OFFLINE = PrivateKey(Algorithm.ED25519, det(32, "ed25519/offline"))
ONLINE = PrivateKey(Algorithm.ED25519, det(32, "ed25519/online"))
OFFLINE_448 = PrivateKey(Algorithm.ED448, det(57, "ed448/offline"))
ONLINE_448 = PrivateKey(Algorithm.ED448, det(57, "ed448/online"))
AUTHORITY = make_authority(OFFLINE, AT, lambda size: det(size, "serial"))
SERVER = make_online("smp.example.com", ONLINE.public, AUTHORITY, OFFLINE, AT, bytes)
DIGITAL_SIGNATURE_NON_REPUDIATION_KEY_AGREEMENT = bytes.fromhex("030203c8")


def extensions(certificate: x509.Certificate) -> list[tuple[str, bool]]:
    return [(e.oid.dotted_string, e.critical) for e in certificate.extensions]


class TestAuthority:
    def test_form(self) -> None:
        certificate = x509.load_der_x509_certificate(AUTHORITY)
        name = [(a.oid, a.value) for a in certificate.subject]
        assert name == [
            (NameOID.COMMON_NAME, "SMP server CA"),
            (NameOID.ORGANIZATION_NAME, "SimpleX"),
        ]
        assert certificate.issuer == certificate.subject
        assert certificate.serial_number == int.from_bytes(det(20, "serial"), "big") >> 1
        assert extensions(certificate) == [
            ("2.5.29.14", False),
            ("2.5.29.35", False),
            ("2.5.29.19", True),
        ]
        own = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
        assert certificate.extensions[0].value == own
        assert certificate.extensions[1].value == x509.AuthorityKeyIdentifier(
            own.digest, None, None
        )
        assert certificate.extensions[2].value == x509.BasicConstraints(True, None)

    def test_validity_in_both_forms_of_time(self) -> None:
        certificate = Certificate.decode(AUTHORITY)
        assert certificate.not_before == AT
        assert certificate.not_after == AT + timedelta(days=999999)
        assert b"\x17\x0d260203040506Z" in AUTHORITY
        assert b"\x18\x0f47631231040506Z" in AUTHORITY

    def test_texts_are_utf8(self) -> None:
        assert AUTHORITY.count(b"\x0c\x0dSMP server CA") == 2
        assert AUTHORITY.count(b"\x0c\x07SimpleX") == 2

    def test_signed_by_another(self) -> None:
        authority = make_authority(ONLINE, AT, bytes, common_name="Id", issuer=(AUTHORITY, OFFLINE))
        certificate = x509.load_der_x509_certificate(authority)
        signer = x509.load_der_x509_certificate(AUTHORITY)
        assert certificate.issuer == signer.subject
        assert certificate.extensions[1].value == x509.AuthorityKeyIdentifier(
            x509.SubjectKeyIdentifier.from_public_key(signer.public_key()).digest, None, None
        )
        check_server_chain([authority, AUTHORITY], fingerprint(AUTHORITY), AT)

    def test_signed_by_another_with_a_wrong_key(self) -> None:
        with pytest.raises(CertificateError) as caught:
            make_authority(ONLINE, AT, bytes, issuer=(AUTHORITY, ONLINE))
        assert caught.value.fault is Fault.WRONG_KEY

    def test_the_serial_number_is_never_0(self) -> None:
        for random in (bytes, lambda size: b"\xff" * size):
            authority = make_authority(OFFLINE, AT, random)
            number = x509.load_der_x509_certificate(authority).serial_number
            assert 0 < number < 1 << 159


class TestOnline:
    def test_form(self) -> None:
        certificate = x509.load_der_x509_certificate(SERVER)
        assert [(a.oid, a.value) for a in certificate.subject] == [
            (NameOID.COMMON_NAME, "smp.example.com")
        ]
        assert certificate.issuer == x509.load_der_x509_certificate(AUTHORITY).subject
        assert extensions(certificate) == [
            ("2.5.29.19", False),
            ("2.5.29.15", False),
            ("2.5.29.37", False),
        ]
        assert certificate.extensions[0].value == x509.BasicConstraints(False, None)
        assert DIGITAL_SIGNATURE_NON_REPUDIATION_KEY_AGREEMENT in SERVER
        assert certificate.extensions[2].value == x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH]
        )
        read = Certificate.decode(SERVER)
        assert (read.not_before, read.not_after) == (AT, AT + timedelta(days=999999))
        assert read.key == ONLINE.public

    @pytest.mark.parametrize("offline", [OFFLINE, OFFLINE_448])
    @pytest.mark.parametrize("online", [ONLINE, ONLINE_448])
    def test_algorithms(self, offline: PrivateKey, online: PrivateKey) -> None:
        authority = make_authority(offline, AT, bytes)
        leaf = make_online("10.0.0.1", online.public, authority, offline, AT, bytes)
        assert ServerIdentity.checked([leaf], online, [authority], AT).chain == (leaf, authority)

    @pytest.mark.parametrize("length", [3, 4])
    def test_longer_chains(self, length: int) -> None:
        keys = [PrivateKey(Algorithm.ED25519, bytes((number,)) * 32) for number in range(4)]
        chain = [make_authority(keys[0], AT, bytes, common_name="Root")]
        for number in range(1, length - 1):
            issuer = (chain[0], keys[number - 1])
            name = f"Authority {number}"
            chain.insert(
                0, make_authority(keys[number], AT, bytes, common_name=name, issuer=issuer)
            )
        key = keys[length - 2]
        leaf = make_online("a.b", ONLINE.public, chain[0], key, AT, bytes)
        identity = ServerIdentity.checked([leaf], ONLINE, chain, AT)
        assert identity.key_hash == fingerprint(chain[0])
        assert len(identity.chain) == length

    @pytest.mark.parametrize("name", ["", "a" * 65])
    def test_names_that_do_not_fit(self, name: str) -> None:
        with pytest.raises(ValueError, match="1 to 64"):
            make_online(name, ONLINE.public, AUTHORITY, OFFLINE, AT, bytes)

    def test_an_onion_name_fits(self) -> None:
        name = "a" * 56 + ".onion"
        assert name.encode() in make_online(name, ONLINE.public, AUTHORITY, OFFLINE, AT, bytes)

    def test_the_key_of_another_authority(self) -> None:
        with pytest.raises(CertificateError) as caught:
            make_online("a.b", ONLINE.public, AUTHORITY, ONLINE, AT, bytes)
        assert caught.value.fault is Fault.WRONG_KEY

    def test_keys_that_do_not_sign(self) -> None:
        key = PrivateKey(Algorithm.X25519, bytes(32))
        with pytest.raises(ValueError, match="do not sign"):
            make_authority(key, AT, bytes)
        with pytest.raises(ValueError, match="do not sign"):
            make_online("a.b", key.public, AUTHORITY, OFFLINE, AT, bytes)


class TestRenewal:
    LATER = AT + timedelta(days=100)

    def test_same_name_and_algorithm(self) -> None:
        new, key = renew_online(
            SERVER, AUTHORITY, OFFLINE, self.LATER, lambda size: det(size, "renewal")
        )
        old, read = Certificate.decode(SERVER), Certificate.decode(new)
        assert read.subject == old.subject
        assert read.not_before == self.LATER
        assert key.raw == det(32, "renewal")
        assert key.public == read.key != old.key
        identity = ServerIdentity.checked([new], key, [AUTHORITY], self.LATER)
        assert identity.key_hash == fingerprint(AUTHORITY)

    def test_of_ed448(self) -> None:
        online = make_online("a.b", ONLINE_448.public, AUTHORITY, OFFLINE, AT, bytes)
        _, key = renew_online(online, AUTHORITY, OFFLINE, self.LATER, bytes)
        assert key.algorithm is Algorithm.ED448

    def test_other_name_and_algorithm(self) -> None:
        new, key = renew_online(
            SERVER,
            AUTHORITY,
            OFFLINE,
            self.LATER,
            bytes,
            common_name="smp2.example.com",
            algorithm=Algorithm.ED448,
        )
        assert key.algorithm is Algorithm.ED448
        subject = x509.load_der_x509_certificate(new).subject
        assert subject.rfc4514_string() == "CN=smp2.example.com"

    def test_with_another_authority(self) -> None:
        with pytest.raises(CertificateError) as caught:
            renew_online(SERVER, AUTHORITY, ONLINE, self.LATER, bytes)
        assert caught.value.fault is Fault.WRONG_KEY

    def test_of_garbage(self) -> None:
        with pytest.raises(ParseError):
            renew_online(b"garbage", AUTHORITY, OFFLINE, self.LATER, bytes)


KEY_PEM = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f
-----END PRIVATE KEY-----
"""


class TestPem:
    def test_key(self) -> None:
        key = PrivateKey(Algorithm.ED25519, bytes(range(32)))
        assert pem.encode_key(key) == KEY_PEM
        assert pem.decode_key(KEY_PEM).raw == key.raw

    def test_certificates(self) -> None:
        data = pem.encode_certificates([SERVER, AUTHORITY])
        assert pem.decode_certificates(data) == [SERVER, AUTHORITY]
        lines = data.split(b"\n")
        assert max(map(len, lines)) == 64
        assert data.count(b"-----BEGIN CERTIFICATE-----\n") == 2
        assert data.endswith(b"\n-----END CERTIFICATE-----\n")

    def test_text_between_and_other_ends_of_lines(self) -> None:
        data = b"subject=CN = a\n" + pem.encode_certificates([SERVER]) + b"more\n"
        assert pem.decode_certificates(data) == [SERVER]
        assert pem.decode_certificates(data.replace(b"\n", b"\r\n")) == [SERVER]

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"text",
            KEY_PEM,
            pem.encode_certificates([SERVER]) + KEY_PEM,
            pem.encode_certificates([SERVER])[:-30],
            pem.encode_certificates([SERVER]).replace(b"M", b"!"),
            pem.encode_certificates([b"garbage"]),
        ],
    )
    def test_not_certificates(self, data: bytes) -> None:
        with pytest.raises(ParseError):
            pem.decode_certificates(data)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            KEY_PEM * 2,
            KEY_PEM.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"),
            KEY_PEM.replace(b"MC4C", b"MC5C"),
            pem.encode_certificates([SERVER]),
        ],
    )
    def test_not_a_key(self, data: bytes) -> None:
        with pytest.raises(ParseError):
            pem.decode_key(data)


@given(st.sampled_from(Algorithm).flatmap(lambda a: st.tuples(st.just(a), st.binary(min_size=57))))
def test_key_pem_round_trip(given: tuple[Algorithm, bytes]) -> None:
    algorithm, random = given
    key = PrivateKey(algorithm, random[: algorithm.key_size])
    read = pem.decode_key(pem.encode_key(key))
    assert (read.algorithm, read.raw) == (key.algorithm, key.raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_pem_or_refused(data: bytes) -> None:
    framed = b"-----BEGIN %b-----\n" + data.replace(b"%", b"") + b"\n-----END %b-----\n"
    for tail in (data, framed % (b"PRIVATE KEY", b"PRIVATE KEY")):
        try:
            key = pem.decode_key(tail)
        except ParseError:
            continue
        assert pem.decode_key(pem.encode_key(key)).raw == key.raw
    with pytest.raises(ParseError):
        pem.decode_certificates(framed % (b"CERTIFICATE", b"CERTIFICATE"))
