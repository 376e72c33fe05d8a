"""Certificates and private keys as PEM, the form in which they rest in files."""

from __future__ import annotations

import base64
import binascii
import re
import textwrap
from collections.abc import Iterable
from typing import Final

from txsimplex.certificates import Certificate
from txsimplex.encoding import ParseError
from txsimplex.keys import PrivateKey

_CERTIFICATE: Final = "CERTIFICATE"
_PRIVATE_KEY: Final = "PRIVATE KEY"
_BLOCK: Final = re.compile(
    rb"^-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\r?\n(.*?)^-----END \1-----[ \t]*\r?$",
    re.DOTALL | re.MULTILINE,
)


def encode_certificates(certificates: Iterable[bytes]) -> bytes:
    """PEM of certificates in DER, in their order."""
    return b"".join(_encode(_CERTIFICATE, certificate) for certificate in certificates)


def decode_certificates(pem: bytes) -> list[bytes]:
    """The DER of all certificates, at least one, in their order.

    Text outside of the blocks is allowed, blocks of another kind are not. Raises
    `ParseError`.
    """
    certificates = _decode(_CERTIFICATE, pem)
    for certificate in certificates:
        Certificate.decode(certificate)
    return certificates


def encode_key(key: PrivateKey) -> bytes:
    """PEM of a private key, as PKCS#8 without encryption."""
    return _encode(_PRIVATE_KEY, key.encode())


def decode_key(pem: bytes) -> PrivateKey:
    """The only private key in `pem`. Raises `ParseError`."""
    keys = _decode(_PRIVATE_KEY, pem)
    if len(keys) > 1:
        raise ParseError("more than one key")
    return PrivateKey.decode(keys[0])


def _encode(label: str, der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode("ascii"), 64)
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()


def _decode(label: str, pem: bytes) -> list[bytes]:
    blocks = _BLOCK.findall(pem)
    if not blocks or any(found != label.encode() for found, _ in blocks):
        raise ParseError(f"not PEM of a {label.lower()}")
    try:
        return [base64.b64decode(b"".join(lines.split()), validate=True) for _, lines in blocks]
    except binascii.Error:
        raise ParseError("not base64") from None
