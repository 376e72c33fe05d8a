"""The relay's certificate files: read together, written whole.

A key and its certificate are two files; `replace_pair` goes through states in each of which
`read_identity` finds a key with its own certificate (docs/spec/smp-ops.md §3).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from txsimplex.certificates import Certificate, CertificateError, ServerIdentity
from txsimplex.encoding import ParseError
from txsimplex.keys import PrivateKey
from txsimplex.pem import decode_certificates, decode_key
from txsimplex.whole_files import PRIVATE, PUBLIC, replace, sync_directory

T = TypeVar("T")


class CredentialsError(Exception):
    """Files of keys or certificates that cannot be used; the text is a sentence that names them."""


def pending(certificate: Path) -> Path:
    """Where a new certificate waits until its key has taken the place of the old one."""
    return certificate.with_name(certificate.name + ".new")


def replace_pair(certificate: Path, key: Path, certificate_pem: bytes, key_pem: bytes) -> None:
    """Puts a new key and certificate in the place of the old ones.

    The new certificate is first written beside the old one. From the moment at
    which the new key is in its place on, `read_identity` takes that certificate,
    and so it does when nothing comes after this.
    """
    if _waits_for(key, certificate):
        # Of an earlier replacement that was interrupted: it is the present key's only one.
        _take_place(certificate)
    replace(pending(certificate), certificate_pem, PUBLIC)
    replace(key, key_pem, PRIVATE)
    _take_place(certificate)


def _waits_for(key: Path, certificate: Path) -> bool:
    try:
        leaf = read_certificates(pending(certificate))[0]
        return Certificate.decode(leaf).key == read_key(key).public
    except CredentialsError:
        return False


def _take_place(certificate: Path) -> None:
    pending(certificate).replace(certificate)
    sync_directory(certificate.parent)


def read_certificates(path: Path) -> list[bytes]:
    """The certificates of a file in DER, at least one. Raises `CredentialsError`."""
    return _decoded(path, decode_certificates, "certificates in PEM")


def read_key(path: Path) -> PrivateKey:
    """The Ed25519 or Ed448 key of a file. Raises `CredentialsError`."""
    key = _decoded(path, decode_key, "an unencrypted Ed25519 or Ed448 private key in PEM")
    if not key.algorithm.signs:
        raise CredentialsError(f"{path} has no key for signatures")
    return key


def read_identity(
    certificate: Path, key: Path, ca_certificate: Path, at: datetime
) -> ServerIdentity:
    """The relay's chain and key, as clients would accept them at the time `at`.

    Also while `replace_pair` is at work, and after it was interrupted. Raises
    `CredentialsError`.
    """
    authority = read_certificates(ca_certificate)
    # The second round is for a replacement that happened between the readings of the first.
    for _ in range(2):
        private = read_key(key)
        leaf = _matching(private, certificate)
        if leaf is None:
            continue
        try:
            return ServerIdentity.checked(leaf, private, authority, at)
        except CertificateError as error:
            raise CredentialsError(
                f"{certificate} and {ca_certificate}: {error.fault.value}"
            ) from None
    raise CredentialsError(f"the key in {key} is not that of the certificate in {certificate}")


def _matching(private: PrivateKey, certificate: Path) -> list[bytes] | None:
    """The certificates of the key: those in place, or else those that wait for it."""
    leaf = read_certificates(certificate)
    if Certificate.decode(leaf[0]).key == private.public:
        return leaf
    try:
        leaf = read_certificates(pending(certificate))
    except CredentialsError:
        return None
    return leaf if Certificate.decode(leaf[0]).key == private.public else None


def _decoded(path: Path, decode: Callable[[bytes], T], allowed: str) -> T:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from None
    except ParseError:
        raise CredentialsError(f"{path} does not contain {allowed}") from None
