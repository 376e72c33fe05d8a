"""Certificates of servers and services, and the checks of their chains.

A server has an offline identity, whose SHA-256 is in its address, and an online
certificate that the identity signed. Chains go leaf first: ``leaf, identity``,
``leaf, identity, authority`` or ``leaf, identity, network, authority``; a service
client may also show a single certificate of its own making (docs/spec/smp-wire.md
§4.2). Making certificates is in `txsimplex.issuing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final

from cryptography import x509

from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify

LONGEST_CHAIN: Final = 4
_SIGNATURE_OIDS: Final = {"1.3.101.112": Algorithm.ED25519, "1.3.101.113": Algorithm.ED448}
_V3: Final = bytes.fromhex("a003020102")


class Fault(Enum):
    """Why a chain is refused; the value says it in words."""

    EMPTY_CHAIN = "the chain has no identity certificate"
    TOO_DEEP = "the chain is too long"
    MALFORMED = "not a certificate"
    NOT_V3 = "the first certificate is not of X.509 version 3"
    UNKNOWN_CA = "the chain does not lead to the identity expected"
    IDENTITY_NOT_IN_PATH = "the identity certificate did not sign for the first one"
    SELF_SIGNED = "a certificate is signed by itself before the end of the chain"
    INVALID_SIGNATURE = "a signature is wrong"
    EXPIRED = "a certificate has expired"
    NOT_YET_VALID = "a certificate is not valid yet"
    NOT_AN_AUTHORITY = "a certificate that signed another is not one of an authority"
    NOT_ALLOWED_TO_SIGN = "a certificate that signed another is not for signing certificates"
    NOT_FOR_SIGNATURES = "the first certificate is not for signatures"
    WRONG_KEY = "the private key is not that of the certificate"


class CertificateError(Exception):
    """A certificate or a chain that is refused; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the checks need to know of an X.509 certificate.

    `key` is None for a key, and `algorithm` for a signature, of an algorithm other
    than Ed25519 and Ed448. `issuer` and `subject` are DER. `path_length` is None
    where the number of certificates below is not limited.
    """

    der: bytes
    signed: bytes
    algorithm: Algorithm | None
    signature: bytes
    v3: bool
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    key: PublicKey | None
    authority: bool
    path_length: int | None
    signs_certificates: bool
    signs_data: bool

    @classmethod
    def decode(cls, der: bytes) -> Certificate:
        """A certificate from DER. Raises `ParseError`.

        The last few that were decoded are kept, so the certificates of peers that
        connect again cost nothing.
        """
        return _decode(bytes(der))


@lru_cache(maxsize=64)
def _decode(der: bytes) -> Certificate:
    try:
        return _read(der, x509.load_der_x509_certificate(der))
    except (
        ValueError,
        LookupError,  # of cryptography, for unknown numbers inside some extensions
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise ParseError("not a certificate") from None


def _read(der: bytes, parsed: x509.Certificate) -> Certificate:
    signed = parsed.tbs_certificate_bytes
    v3, fields = _fields(signed)
    not_before, not_after = _validity(parsed)
    authority, path_length = _constraints(parsed.extensions)
    signs_certificates, signs_data = _usage(parsed.extensions)
    return Certificate(
        der=der,
        signed=signed,
        algorithm=_SIGNATURE_OIDS.get(parsed.signature_algorithm_oid.dotted_string),
        signature=parsed.signature,
        v3=v3,
        issuer=fields[2],
        subject=fields[4],
        not_before=not_before,
        not_after=not_after,
        key=_signing_key(fields[5]),
        authority=authority,
        path_length=path_length,
        signs_certificates=signs_certificates,
        signs_data=signs_data,
    )


def _fields(signed: bytes) -> tuple[bool, list[bytes]]:
    """Whether a TBSCertificate is of version 3, and its fields from serial to key, as DER.

    Only called for what the X.509 parser has accepted. It is for the key: taking
    that from the parser's object costs 0.8 ms with cryptography 38.
    """
    position = _content(signed, 0)[0]
    v3 = signed.startswith(_V3, position)
    if signed[position] == _V3[0]:
        position = _content(signed, position)[1]
    fields = []
    for _ in range(6):
        end = _content(signed, position)[1]
        fields.append(signed[position:end])
        position = end
    return v3, fields


def _content(der: bytes, position: int) -> tuple[int, int]:
    """Where the content of the DER element at `position` begins and ends."""
    size = der[position + 1]
    start = position + 2
    if size >= 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[position + 2 : start], "big")
    return start, start + size


def _signing_key(spki: bytes) -> PublicKey | None:
    try:
        key = PublicKey.decode(spki)
    except ParseError:
        return None
    return key if key.algorithm.signs else None


def _validity(parsed: x509.Certificate) -> tuple[datetime, datetime]:
    try:
        return parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except AttributeError:  # cryptography before 42
        return (
            parsed.not_valid_before.replace(tzinfo=UTC),
            parsed.not_valid_after.replace(tzinfo=UTC),
        )


def _constraints(extensions: x509.Extensions) -> tuple[bool, int | None]:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False, None
    return constraints.ca, constraints.path_length


def _usage(extensions: x509.Extensions) -> tuple[bool, bool]:
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True, True
    return usage.key_cert_sign, usage.digital_signature


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a certificate's DER: the key hash of an address, the id of a service."""
    return hashlib.sha256(certificate).digest()


def identity_of(chain: Sequence[bytes]) -> bytes:
    """The identity certificate of a chain of 1 to 4 certificates, as DER (§4.2).

    It is the second one, and in a chain of one that one. Raises `CertificateError`.
    """
    if not chain:
        raise CertificateError(Fault.EMPTY_CHAIN)
    if len(chain) > LONGEST_CHAIN:
        raise CertificateError(Fault.TOO_DEEP)
    return chain[min(1, len(chain) - 1)]


def service_fingerprint(chain: Sequence[bytes]) -> bytes:
    """The fingerprint by which a relay knows a service (§6.3). Raises `CertificateError`."""
    return fingerprint(identity_of(chain))


def check_server_chain(chain: Sequence[bytes], key_hash: bytes, at: datetime) -> Certificate:
    """The leaf of a server's chain, after the checks that a client makes (§4.2).

    The chain has 2 to 4 certificates in DER, the identity has the fingerprint
    `key_hash`, and at the time `at` (with a time zone) valid signatures lead from
    the leaf to the last certificate, and also to the identity. The reference does
    not ask for the latter (docs/spec/SURPRISES.md 2), so that anybody's leaf
    passes there with anybody's identity put behind it. Only Ed25519 and Ed448
    signatures are known. Raises `CertificateError`.
    """
    if len(chain) < 2:
        raise CertificateError(Fault.EMPTY_CHAIN)
    if fingerprint(identity_of(chain)) != key_hash:
        raise CertificateError(Fault.UNKNOWN_CA)
    return _check(chain, at)


def check_client_chain(chain: Sequence[bytes], at: datetime) -> None:
    """Checks the chain that a client shows to a server (§4.2).

    None at all is fine; a single certificate is its own authority; else as for
    servers, so that no service passes for another by showing its certificate
    behind a leaf of its own. The leaf must be for signatures if it says what it is
    for, which in the reference the TLS library sees to. Raises `CertificateError`.
    """
    if not chain:
        return
    if len(chain) > LONGEST_CHAIN:
        raise CertificateError(Fault.TOO_DEEP)
    leaf = _check(chain, at)
    if not leaf.signs_data:
        raise CertificateError(Fault.NOT_FOR_SIGNATURES)


def _check(chain: Sequence[bytes], at: datetime) -> Certificate:
    try:
        leaf, *others = certificates = [Certificate.decode(der) for der in chain]
    except ParseError:
        raise CertificateError(Fault.MALFORMED) from None
    if not leaf.v3:
        raise CertificateError(Fault.NOT_V3)
    path = _path(leaf, others, certificates[-1], at)
    identity = certificates[min(1, len(others))]
    if identity not in path:
        try:
            _path(leaf, others, identity, at)
        except CertificateError:
            raise CertificateError(Fault.IDENTITY_NOT_IN_PATH) from None
    return leaf


def _path(
    leaf: Certificate, others: Sequence[Certificate], anchor: Certificate, at: datetime
) -> list[Certificate]:
    """The certificates behind the leaf up to `anchor`, of which each signed the one before.

    Issuers are found by name, whatever their order. Of the anchor only name and
    key count, as in the reference.
    """
    remaining = list(others)
    path = [leaf]
    while True:
        current = path[-1]
        if at > current.not_after:
            raise CertificateError(Fault.EXPIRED)
        if at < current.not_before:
            raise CertificateError(Fault.NOT_YET_VALID)
        if current.issuer == anchor.subject:
            _check_signature(current, anchor)
            return [*path[1:], anchor]
        if current.issuer == current.subject:
            raise CertificateError(Fault.SELF_SIGNED)
        issuer = next((c for c in remaining if c.subject == current.issuer), None)
        if issuer is None:
            raise CertificateError(Fault.UNKNOWN_CA)
        remaining.remove(issuer)
        _check_authority(issuer, len(path) - 1)
        _check_signature(current, issuer)
        path.append(issuer)


def _check_authority(issuer: Certificate, below: int) -> None:
    if not issuer.signs_certificates:
        raise CertificateError(Fault.NOT_ALLOWED_TO_SIGN)
    if not issuer.authority:
        raise CertificateError(Fault.NOT_AN_AUTHORITY)
    if issuer.path_length is not None and issuer.path_length < below:
        raise CertificateError(Fault.TOO_DEEP)


def _check_signature(certificate: Certificate, issuer: Certificate) -> None:
    key = issuer.key
    if (
        key is None
        or key.algorithm is not certificate.algorithm
        or not verify(key, certificate.signed, certificate.signature)
    ):
        raise CertificateError(Fault.INVALID_SIGNATURE)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server shows: its chain in DER, leaf first, and the private key of the leaf."""

    chain: tuple[bytes, ...]
    key: PrivateKey

    @classmethod
    def checked(
        cls, leaf: Sequence[bytes], key: PrivateKey, authority: Sequence[bytes], at: datetime
    ) -> ServerIdentity:
        """The identity from the certificates of ``server.crt`` and ``ca.crt`` and a key.

        Clients must be able to connect with it at the time `at`, and `key` must be
        that of the first certificate. Raises `CertificateError`.
        """
        if not leaf or not authority:
            raise CertificateError(Fault.EMPTY_CHAIN)
        identity = cls((*leaf, *authority), key)
        if check_server_chain(identity.chain, fingerprint(authority[0]), at).key != key.public:
            raise CertificateError(Fault.WRONG_KEY)
        return identity

    @property
    def key_hash(self) -> bytes:
        """The fingerprint in the server's address."""
        return service_fingerprint(self.chain)


@dataclass(frozen=True, slots=True)
class SignedKey:
    """A session's public key, signed with the key of a certificate (§6.4)."""

    key: PublicKey
    algorithm: Algorithm
    signature: bytes

    @classmethod
    def sign(cls, key: PublicKey, signer: PrivateKey) -> SignedKey:
        """`key` signed by `signer`, which is an Ed25519 or Ed448 key."""
        return cls(key, signer.algorithm, signer.sign(_signed_part(key)))

    def verify(self, signer: PublicKey) -> bool:
        """Whether the private key of `signer` made the signature."""
        return self.algorithm is signer.algorithm and verify(
            signer, _signed_part(self.key), self.signature
        )

    def encode(self) -> bytes:
        """DER: a SEQUENCE of the key in a SEQUENCE of its own, algorithm, BIT STRING."""
        layout = _LAYOUTS[self.key.algorithm, self.algorithm]
        return layout.head + self.key.encode() + layout.middle + self.signature

    @classmethod
    def decode(cls, der: bytes) -> SignedKey:
        """A signed key from DER. Raises `ParseError` for anything but what `encode` writes."""
        layout = _LAYOUT_OF_SIZE.get(len(der))
        if layout is None or not der.startswith(layout.head):
            raise ParseError("not a signed key")
        start = len(layout.head)
        end = start + layout.key_size
        if not der.startswith(layout.middle, end):
            raise ParseError("not a signed key")
        key = PublicKey.decode(der[start:end])
        return cls(key, layout.signer, der[end + len(layout.middle) :])


def _signed_part(key: PublicKey) -> bytes:
    spki = key.encode()
    return bytes((0x30, len(spki))) + spki


@dataclass(frozen=True, slots=True)
class _Layout:
    """A signed key of fixed sizes: what stands before and behind the public key."""

    head: bytes
    key_size: int
    middle: bytes
    signer: Algorithm

    @property
    def size(self) -> int:
        return len(self.head) + self.key_size + len(self.middle) + self.signer.signature_size

    @classmethod
    def of(cls, key: Algorithm, signer: Algorithm) -> _Layout:
        key_size = len(key.spki_prefix) + key.key_size
        # The prefix of a public key is SEQUENCE { SEQUENCE { OID } BIT STRING.
        algorithm = signer.spki_prefix[2:9]
        middle = algorithm + bytes((0x03, signer.signature_size + 1, 0))
        size = 2 + key_size + len(middle) + signer.signature_size
        length = bytes((size,)) if size < 0x80 else bytes((0x81, size))
        return cls(b"\x30" + length + bytes((0x30, key_size)), key_size, middle, signer)


_LAYOUTS: Final = {
    (key, signer): _Layout.of(key, signer)
    for key in Algorithm
    for signer in Algorithm
    if signer.signs
}
# Two pairs have the same size only where the keys are of the same size.
_LAYOUT_OF_SIZE: Final = {layout.size: layout for layout in _LAYOUTS.values()}
