"""Makes the certificates of a server: offline identity and online certificate.

The forms are those of docs/spec/smp-ops.md §3. Time and random bytes come from
the caller; the same ones give the same certificate.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from txsimplex.certificates import Certificate, CertificateError, Fault
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, Random

AUTHORITY_NAME: Final = "SMP server CA"
"""The subject's common name of every server's identity, of XFTP servers also."""
ORGANIZATION: Final = "SimpleX"
VALIDITY: Final = timedelta(days=999_999)

_SERIAL_SIZE: Final = 20
_LONGEST_NAME: Final = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""


def make_authority(
    key: PrivateKey,
    at: datetime,
    random: Random,
    *,
    common_name: str = AUTHORITY_NAME,
    issuer: tuple[bytes, PrivateKey] | None = None,
) -> bytes:
    """The certificate of an authority, in DER, valid from `at` (with a time zone) on.

    Normally that is a server's offline identity, signed by itself. With `issuer`,
    the certificate and key of another authority, it is signed by that: so are made
    the identities and network certificates of chains of 3 and 4. Raises
    `ValueError` for a name that no certificate can hold, `CertificateError` when
    the issuer's key is not that of its certificate.
    """
    subject = _name(common_name, ORGANIZATION)
    own = x509.SubjectKeyIdentifier.from_public_key(_public(key.public))
    builder = _builder(subject, key.public, at, random).add_extension(own, critical=False)
    issuer_name, issuer_key, issuer_identifier = subject, key, own
    if issuer is not None:
        parsed, issuer_key = _issuer(*issuer)
        issuer_name = parsed.subject
        issuer_identifier = x509.SubjectKeyIdentifier.from_public_key(_public(issuer_key.public))
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier(issuer_identifier.digest, None, None), critical=False
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return _sign(builder.issuer_name(issuer_name), issuer_key)


def make_online(
    common_name: str,
    key: PublicKey,
    authority: bytes,
    authority_key: PrivateKey,
    at: datetime,
    random: Random,
) -> bytes:
    """The online certificate of the server `common_name`, in DER, signed by its identity.

    The common name is the server's host name or address. `key` is an Ed25519 or
    Ed448 key; `authority` is the identity's certificate in DER. Raises as
    `make_authority`.
    """
    return _online(_name(common_name), key, authority, authority_key, at, random)


def renew_online(
    current: bytes,
    authority: bytes,
    authority_key: PrivateKey,
    at: datetime,
    random: Random,
    *,
    common_name: str | None = None,
    algorithm: Algorithm | None = None,
) -> tuple[bytes, PrivateKey]:
    """A new online certificate in DER and its new key, in the place of `current`.

    Subject and algorithm are those of `current` unless others are given; the
    identity, and so the server's address, stays. Raises as `make_authority`, and
    `ParseError` when `current` is not a certificate.
    """
    old = Certificate.decode(current)
    if algorithm is None:
        algorithm = Algorithm.ED25519 if old.key is None else old.key.algorithm
    key = PrivateKey.generate(algorithm, random)
    if common_name is None:
        subject = x509.load_der_x509_certificate(current).subject
    else:
        subject = _name(common_name)
    return _online(subject, key.public, authority, authority_key, at, random), key


def _online(
    subject: x509.Name,
    key: PublicKey,
    authority: bytes,
    authority_key: PrivateKey,
    at: datetime,
    random: Random,
) -> bytes:
    issuer, _ = _issuer(authority, authority_key)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, key, at, random)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(usage, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return _sign(builder, authority_key)


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    if not 0 < len(common_name) <= _LONGEST_NAME:
        raise ValueError(f"a certificate's name has 1 to {_LONGEST_NAME} characters")
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _public(key: PublicKey) -> Ed25519PublicKey | Ed448PublicKey:
    if key.algorithm is Algorithm.ED25519:
        return Ed25519PublicKey.from_public_bytes(key.raw)
    if key.algorithm is Algorithm.ED448:
        return Ed448PublicKey.from_public_bytes(key.raw)
    raise ValueError(f"{key.algorithm.name} keys do not sign")


def _private(key: PrivateKey) -> Ed25519PrivateKey | Ed448PrivateKey:
    if key.algorithm is Algorithm.ED25519:
        return Ed25519PrivateKey.from_private_bytes(key.raw)
    if key.algorithm is Algorithm.ED448:
        return Ed448PrivateKey.from_private_bytes(key.raw)
    raise ValueError(f"{key.algorithm.name} keys do not sign")


def _issuer(certificate: bytes, key: PrivateKey) -> tuple[x509.Certificate, PrivateKey]:
    if Certificate.decode(certificate).key != key.public:
        raise CertificateError(Fault.WRONG_KEY)
    return x509.load_der_x509_certificate(certificate), key


def _builder(
    subject: x509.Name, key: PublicKey, at: datetime, random: Random
) -> x509.CertificateBuilder:
    # 159 random bits, as openssl takes; the first bit must be 0, the number not.
    serial = int.from_bytes(random(_SERIAL_SIZE), "big") >> 1 or 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(_public(key))
        .serial_number(serial)
        .not_valid_before(at)
        .not_valid_after(at + VALIDITY)
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> bytes:
    return builder.sign(_private(key), None).public_bytes(Encoding.DER)
