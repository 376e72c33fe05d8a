"""Certificates, chains and signed keys (docs/spec/smp-wire.md §4.2, §6.4; conformance 14-17)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, det, load, name_of, value
from txsimplex.certificates import (
    Certificate,
    CertificateError,
    Fault,
    ServerIdentity,
    SignedKey,
    check_client_chain,
    check_server_chain,
    fingerprint,
    identity_of,
    service_fingerprint,
)
from txsimplex.encoding import ParseError
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey, verify

AT = datetime(2026, 6, 1, tzinfo=UTC)
"""Those of the vectors are valid from 2020 to 2120, a few only until 2021 or from 2110."""

NOT_IN_PATH = (
    "the reference does not ask that the identity be among the certificates that signed; "
    "docs/spec/SURPRISES.md 2"
)
FOR_KEYS_ONLY = (
    "the functions that the vector ran do not look at the leaf's key usage, "
    "but the reference's TLS library does before them (smp-wire.md §4.2)"
)
REFUSED_SERVER_CHAINS = {
    "chain/evil-leaf+ca+evil": (Fault.IDENTITY_NOT_IN_PATH, NOT_IN_PATH),
    "chain/evil-leaf+id3+root+evil": (Fault.IDENTITY_NOT_IN_PATH, NOT_IN_PATH),
}
REFUSED_CLIENT_CHAINS = {
    **REFUSED_SERVER_CHAINS,
    "chain/leaf-keyenc+ca": (Fault.NOT_FOR_SIGNATURES, FOR_KEYS_ONLY),
}

SERVER_ERRORS = {
    "EmptyChain": Fault.EMPTY_CHAIN,
    "UnknownCA": Fault.UNKNOWN_CA,
    "Expired": Fault.EXPIRED,
    "InFuture": Fault.NOT_YET_VALID,
    "SelfSigned": Fault.SELF_SIGNED,
    "InvalidSignature SignatureInvalid": Fault.INVALID_SIGNATURE,
    "NotAnAuthority": Fault.NOT_AN_AUTHORITY,
    "NotAllowedToSign": Fault.NOT_ALLOWED_TO_SIGN,
    "AuthorityTooDeep": Fault.TOO_DEEP,
}


def client_result(fault: Fault | None) -> str:
    """What the reference says of a client's chain that has this fault."""
    if fault is None:
        return "accepted"
    if fault is Fault.TOO_DEEP:
        return "rejected: chain too long"
    if fault in {Fault.EXPIRED, Fault.NOT_YET_VALID}:
        return "rejected: expired"
    if fault is Fault.UNKNOWN_CA:
        return "rejected: unknown CA"
    names = {fault: name for name, fault in SERVER_ERRORS.items()}
    return f"rejected: [{names[fault]}]"


@cache
def certificates() -> dict[str, bytes]:
    vectors = load("handshake", "certificate")
    return {name_of(v).removeprefix("cert/"): value(v["der"]) for v in vectors}


def chain_of(*names: str) -> list[bytes]:
    return [certificates()[name] for name in names]


def server_fault(chain: list[bytes], key_hash: bytes, at: datetime = AT) -> Fault | None:
    try:
        check_server_chain(chain, key_hash, at)
    except CertificateError as error:
        return error.fault
    return None


def client_fault(chain: list[bytes]) -> Fault | None:
    try:
        check_client_chain(chain, AT)
    except CertificateError as error:
        return error.fault
    return None


class TestCertificates:
    @pytest.mark.parametrize("vector", load("handshake", "certificate"), ids=name_of)
    def test_read(self, vector: Vector) -> None:
        der = value(vector["der"])
        assert fingerprint(der).hex() == vector["sha256"]
        certificate = Certificate.decode(der)
        parsed = x509.load_der_x509_certificate(der)
        key = parsed.public_key()
        assert certificate.der == der
        assert certificate.v3
        assert certificate.issuer == parsed.issuer.public_bytes()
        assert certificate.subject == parsed.subject.public_bytes()
        assert certificate.signed == parsed.tbs_certificate_bytes
        assert certificate.signature == parsed.signature
        assert certificate.not_before.year in {2020, 2110}
        assert certificate.not_after.year in {2021, 2120}
        if isinstance(key, EllipticCurvePublicKey):
            assert certificate.key is None
        else:
            assert certificate.key is not None
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert certificate.key.encode() == spki

    def test_extensions(self) -> None:
        authority, leaf, bare, limited, encryption, no_signer = (
            Certificate.decode(der)
            for der in chain_of(
                "ca", "leaf", "leaf-noext", "id3-pathlen", "leaf-keyenc", "ca-nokcs"
            )
        )
        assert (authority.authority, authority.path_length) == (True, None)
        assert limited.path_length == 0
        assert not leaf.authority
        assert (leaf.signs_data, leaf.signs_certificates) == (True, False)
        assert (bare.signs_data, bare.signs_certificates) == (True, True)
        assert not encryption.signs_data
        assert not no_signer.signs_certificates


@given(st.data())
def test_any_bytes_are_a_certificate_or_refused(data: st.DataObject) -> None:
    der = bytearray(data.draw(st.sampled_from(list(certificates().values()))))
    for _ in range(data.draw(st.integers(0, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        certificate = Certificate.decode(bytes(der[: data.draw(st.integers(0, 600))]))
    except ParseError:
        return
    assert certificate.signed in bytes(der)


class TestChains:
    @pytest.mark.parametrize("vector", load("handshake", "chain"), ids=name_of)
    def test_identity(self, vector: Vector) -> None:
        chain = chain_of(*vector["certs"])
        if vector["identity_sha256"] is None:
            fault = Fault.TOO_DEEP if vector["classification"] == "long" else Fault.EMPTY_CHAIN
            with pytest.raises(CertificateError) as caught:
                identity_of(chain)
            assert caught.value.fault is fault
            return
        assert len(chain) == 1 if vector["classification"] == "self" else len(chain) in {2, 3, 4}
        assert service_fingerprint(chain).hex() == vector["identity_sha256"]
        assert hashlib.sha256(identity_of(chain)).hexdigest() == vector["identity_sha256"]

    @pytest.mark.parametrize("vector", load("handshake", "chain"), ids=name_of)
    def test_of_a_server(self, vector: Vector) -> None:
        chain = chain_of(*vector["certs"])
        errors = vector["server_validation_errors_with_identity_hash"]
        expected = SERVER_ERRORS[errors[0]] if errors else None
        if vector["name"] in REFUSED_SERVER_CHAINS:
            assert expected is None
            expected = REFUSED_SERVER_CHAINS[vector["name"]][0]
        key_hash = bytes.fromhex(vector["identity_sha256"] or "")
        assert server_fault(chain, key_hash) is expected

    @pytest.mark.parametrize("vector", load("handshake", "chain"), ids=name_of)
    def test_of_another_server(self, vector: Vector) -> None:
        chain = chain_of(*vector["certs"])
        [error] = vector["server_validation_errors_with_wrong_hash"]
        assert server_fault(chain, bytes(32)) is SERVER_ERRORS[error]

    @pytest.mark.parametrize("vector", load("handshake", "chain"), ids=name_of)
    def test_of_a_client(self, vector: Vector) -> None:
        fault = client_fault(chain_of(*vector["certs"]))
        expected = vector["client_certificate_at_server"]
        if vector["name"] in REFUSED_CLIENT_CHAINS:
            assert expected == "accepted"
            assert fault is REFUSED_CLIENT_CHAINS[vector["name"]][0]
        else:
            assert client_result(fault) == expected

    def test_conformance_14(self) -> None:
        key_hash = fingerprint(certificates()["ca"])
        assert server_fault([], key_hash) is Fault.EMPTY_CHAIN
        assert server_fault(chain_of("leaf", "ca"), key_hash) is None
        assert server_fault(chain_of("svc-leaf", "svc-ca"), key_hash) is Fault.UNKNOWN_CA

    def test_conformance_15(self) -> None:
        # "other" has the name of "ca" and another key.
        key_hash = fingerprint(certificates()["other"])
        assert server_fault(chain_of("leaf", "other"), key_hash) is Fault.INVALID_SIGNATURE
        key_hash = fingerprint(certificates()["ca"])
        assert server_fault(chain_of("svc-self", "ca"), key_hash) is Fault.SELF_SIGNED

    def test_conformance_16(self) -> None:
        three = chain_of("leaf3", "id3", "root")
        four = chain_of("leaf3", "id4", "net4", "root")
        assert server_fault(three, fingerprint(three[1])) is None
        assert server_fault(four, fingerprint(four[1])) is None
        assert server_fault(four[:1], fingerprint(four[0])) is Fault.EMPTY_CHAIN
        assert server_fault([*four, four[3]], fingerprint(four[1])) is Fault.TOO_DEEP

    def test_the_leaf_is_returned(self) -> None:
        chain = chain_of("leaf", "ca")
        leaf = check_server_chain(chain, fingerprint(chain[1]), AT)
        assert leaf == Certificate.decode(chain[0])

    @pytest.mark.parametrize("certs", [("evil-leaf", "ca", "evil"), ("evil-leaf", "ca")])
    def test_an_identity_of_another_server_is_refused(self, certs: tuple[str, ...]) -> None:
        """Surprise 2: the pinned certificate merely stands where it is looked for."""
        chain = chain_of(*certs)
        assert server_fault(chain, fingerprint(chain[1])) is not None
        assert client_fault(chain) is not None

    def test_an_authority_with_the_name_of_the_identity_is_refused(self) -> None:
        """The same with an authority that has the name of the pinned certificate."""
        key = PrivateKey(Algorithm.ED25519, det(32, "ed25519/another-authority"))
        ours = make_authority(PrivateKey(Algorithm.ED25519, bytes(32)), AT, bytes)
        other = make_authority(key, AT, bytes)
        leaf = make_online("a.b", key.public, other, key, AT, bytes)
        assert Certificate.decode(other).subject == Certificate.decode(ours).subject
        assert server_fault([leaf, other], fingerprint(other)) is None
        assert server_fault([leaf, ours, other], fingerprint(ours)) is Fault.IDENTITY_NOT_IN_PATH

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_garbage_in_a_chain(self, position: int) -> None:
        chain = chain_of("leaf3", "id3", "root")
        chain[position] = chain[position][:-1]
        assert server_fault(chain, fingerprint(chain[1])) is Fault.MALFORMED
        assert client_fault(chain) is Fault.MALFORMED

    @pytest.mark.parametrize(
        ("path_length", "fault"), [(None, None), (1, None), (0, Fault.TOO_DEEP)]
    )
    def test_path_length(self, path_length: int | None, fault: Fault | None) -> None:
        key = PrivateKey(Algorithm.ED25519, bytes(32))
        root = make_authority(key, AT, bytes, common_name="Root")
        upper = crafted("Upper", "Root", key, path_length)
        lower = make_authority(key, AT, bytes, common_name="Lower", issuer=(upper, key))
        leaf = make_online("a.b", key.public, lower, key, AT, bytes)
        assert server_fault([leaf, lower, upper, root], fingerprint(lower)) is fault

    def test_of_version_1(self) -> None:
        key = PrivateKey(Algorithm.ED25519, bytes(32))
        authority = make_authority(key, AT, bytes)
        leaf = Certificate.decode(make_online("a.b", key.public, authority, key, AT, bytes))
        spki = key.public.encode()
        before_key = leaf.signed[leaf.signed.index(b"\xa0\x03") + 5 : leaf.signed.index(spki)]
        signed = sequence(before_key + spki)
        algorithm = bytes.fromhex("300506032b6570")
        old = sequence(signed + algorithm + b"\x03\x41\0" + key.sign(signed))
        assert not Certificate.decode(old).v3
        assert server_fault([leaf.der, authority], fingerprint(authority)) is None
        assert server_fault([old, authority], fingerprint(authority)) is Fault.NOT_V3

    def test_validity(self) -> None:
        key = PrivateKey(Algorithm.ED25519, bytes(32))
        authority = make_authority(key, AT - timedelta(days=1), bytes)
        chain = [make_online("a.b", key.public, authority, key, AT, bytes), authority]
        ends = Certificate.decode(chain[0]).not_after
        second = timedelta(seconds=1)
        faults = {
            AT - second: Fault.NOT_YET_VALID,
            AT: None,
            ends: None,
            ends + second: Fault.EXPIRED,
        }
        for at, fault in faults.items():
            assert server_fault(chain, fingerprint(authority), at) is fault


def sequence(content: bytes) -> bytes:
    """A DER SEQUENCE of at most 255 bytes."""
    size = len(content)
    return (bytes((0x30, size)) if size < 0x80 else bytes((0x30, 0x81, size))) + content


def crafted(name: str, issuer: str, key: PrivateKey, path_length: int | None) -> bytes:
    """The certificate of an authority below which there may be only so many others."""
    signer = Ed25519PrivateKey.from_private_bytes(key.raw)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(signer.public_key())
        .serial_number(1)
        .not_valid_before(AT)
        .not_valid_after(AT + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .sign(signer, None)
        .public_bytes(Encoding.DER)
    )


def named(common_name: str) -> x509.Name:
    """The subject of an authority of this name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SimpleX"),
        ]
    )


@cache
def signers(name: str) -> frozenset[str]:
    """The certificates with whose keys the certificate `name` was signed."""
    child = Certificate.decode(certificates()[name])
    return frozenset(
        other
        for other, der in certificates().items()
        if (key := Certificate.decode(der).key) is not None
        and key.algorithm is child.algorithm
        and verify(key, child.signed, child.signature)
    )


@pytest.mark.parametrize("length", [2, 3])
def test_the_identity_of_an_accepted_chain_signed_for_the_leaf(length: int) -> None:
    """Of all chains of some certificates, against who signed what, found by trying."""
    some = ["leaf", "leaf3", "leaf448ca25519", "evil-leaf", "ca", "id3"]
    some += ["id4", "net4", "root", "other", "evil", "ca448"]
    accepted = 0
    for names in product(some, repeat=length):
        chain = chain_of(*names)
        if server_fault(chain, fingerprint(chain[1])) is not None:
            continue
        accepted += 1
        signed_for = set(signers(names[0]))
        for _ in names:
            signed_for.update(*(signers(name) for name in signed_for & set(names)))
        assert names[1] in signed_for
        assert client_fault(chain) in {None, Fault.NOT_FOR_SIGNATURES}
    assert accepted > len(some) / 2


class TestServerIdentity:
    KEY = PrivateKey(Algorithm.ED25519, det(32, "ed25519/online"))
    OFFLINE = PrivateKey(Algorithm.ED25519, det(32, "ed25519/offline"))
    AUTHORITY = make_authority(OFFLINE, AT, bytes)
    LEAF = make_online("smp.example.com", KEY.public, AUTHORITY, OFFLINE, AT, bytes)

    def test_of_two(self) -> None:
        identity = ServerIdentity.checked([self.LEAF], self.KEY, [self.AUTHORITY], AT)
        assert identity.chain == (self.LEAF, self.AUTHORITY)
        assert identity.key_hash == fingerprint(self.AUTHORITY)

    def test_of_three(self) -> None:
        root_key = PrivateKey(Algorithm.ED448, det(57, "ed448/root"))
        root = make_authority(root_key, AT, bytes, common_name="Operator")
        authority = make_authority(self.OFFLINE, AT, bytes, issuer=(root, root_key))
        leaf = make_online("a.b", self.KEY.public, authority, self.OFFLINE, AT, bytes)
        identity = ServerIdentity.checked([leaf], self.KEY, [authority, root], AT)
        assert identity.key_hash == fingerprint(authority)

    @pytest.mark.parametrize("missing", ["leaf", "authority"])
    def test_without_a_certificate(self, missing: str) -> None:
        leaf = [] if missing == "leaf" else [self.LEAF]
        authority = [] if missing == "authority" else [self.AUTHORITY]
        with pytest.raises(CertificateError) as caught:
            ServerIdentity.checked(leaf, self.KEY, authority, AT)
        assert caught.value.fault is Fault.EMPTY_CHAIN

    def test_with_another_key(self) -> None:
        with pytest.raises(CertificateError) as caught:
            ServerIdentity.checked([self.LEAF], self.OFFLINE, [self.AUTHORITY], AT)
        assert caught.value.fault is Fault.WRONG_KEY

    def test_with_two_leaves(self) -> None:
        with pytest.raises(CertificateError) as caught:
            ServerIdentity.checked([self.LEAF, self.LEAF], self.KEY, [self.AUTHORITY], AT)
        assert caught.value.fault is Fault.UNKNOWN_CA

    def test_the_key_is_not_shown(self) -> None:
        identity = ServerIdentity.checked([self.LEAF], self.KEY, [self.AUTHORITY], AT)
        assert repr(self.KEY.raw) not in repr(identity)


SIGNED_KEYS = load("handshake", "signed-key")


def signer_of(vector: Vector) -> PrivateKey:
    algorithm = Algorithm[vector["signer"]["alg"].upper()]
    return PrivateKey(algorithm, value(vector["signer"]["private_raw"]))


class TestSignedKeys:
    @pytest.mark.parametrize("vector", SIGNED_KEYS, ids=name_of)
    def test_made_as_by_the_reference(self, vector: Vector) -> None:
        der = value(vector["der"])
        signed = SignedKey.decode(der)
        assert signed.key.encode().hex() == vector["key_spki"]
        signer = signer_of(vector)
        assert SignedKey.sign(signed.key, signer) == signed
        assert signed.encode() == der
        assert signed.verify(signer.public)
        assert verify(signer.public, value(vector["signed_bytes"]), signed.signature)

    def test_conformance_17(self) -> None:
        session = PrivateKey(Algorithm.X25519, b"\5" * 32).public
        by_ed25519 = SignedKey.sign(session, PrivateKey(Algorithm.ED25519, b"\4" * 32))
        assert by_ed25519.encode().hex() == (
            "3078302c302a300506032b656e03210050a61409b1ddd0325e9b16b700e719e9772c07000b1bd7786e"
            "907c653d20495d300506032b6570034100763e936bcecdd9194cd6df0f915d1ac4388bcc3eff5932eb"
            "41a944a58437e161629860b5f4a90188bd83561703caf5d8c8fbb5f07a65bceb7eccbd4b28277d0b"
        )
        by_ed448 = SignedKey.sign(session, PrivateKey(Algorithm.ED448, b"\4" * 57))
        assert len(by_ed448.encode()) == 173

    @pytest.mark.parametrize("vector", SIGNED_KEYS, ids=name_of)
    def test_another_signer(self, vector: Vector) -> None:
        signed = SignedKey.decode(value(vector["der"]))
        for algorithm in (Algorithm.ED25519, Algorithm.ED448):
            other = PrivateKey(algorithm, bytes(algorithm.key_size))
            assert not signed.verify(other.public)

    def test_every_bit_counts(self) -> None:
        der = value(SIGNED_KEYS[0]["der"])
        signer = signer_of(SIGNED_KEYS[0]).public
        for bit in range(len(der) * 8):
            changed = bytearray(der)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                signed = SignedKey.decode(bytes(changed))
            except ParseError:
                continue
            assert signed.encode() == changed
            assert not signed.verify(signer)

    @pytest.mark.parametrize("vector", SIGNED_KEYS, ids=name_of)
    def test_malformed(self, vector: Vector) -> None:
        der = value(vector["der"])
        spki = value(vector["key_spki"])
        unwrapped = b"\x30" + bytes((len(der) - 4,)) + der[der.index(spki) :]
        for wrong in (b"", der[:-1], der + b"\0", spki, unwrapped):
            with pytest.raises(ParseError):
                SignedKey.decode(wrong)

    def test_a_key_that_does_not_sign(self) -> None:
        session = PrivateKey(Algorithm.X25519, bytes(32))
        with pytest.raises(ValueError, match="do not sign"):
            SignedKey.sign(session.public, session)


def private_keys(*algorithms: Algorithm) -> st.SearchStrategy[PrivateKey]:
    return st.sampled_from(algorithms).flatmap(
        lambda a: st.binary(min_size=a.key_size, max_size=a.key_size).map(
            lambda raw: PrivateKey(a, raw)
        )
    )


@given(private_keys(*Algorithm), private_keys(Algorithm.ED25519, Algorithm.ED448))
def test_signed_key_round_trip(key: PrivateKey, signer: PrivateKey) -> None:
    signed = SignedKey.sign(key.public, signer)
    assert SignedKey.decode(signed.encode()) == signed
    assert signed.verify(signer.public)


@given(
    st.binary(max_size=200)
    | st.sampled_from([122, 147, 148, 173, 197, 198]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    )
)
def test_any_bytes_are_a_signed_key_or_refused(der: bytes) -> None:
    try:
        signed = SignedKey.decode(der)
    except ParseError:
        return
    assert signed.encode() == der
