"""TLS contexts of SMP servers and clients (smp-wire.md §4).

A context cannot be changed once it has been used. To reload certificates make a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto

from txsimplex import openssl

ALPN = (b"smp/1", b"h2", b"http/1.1")
"""The protocols that a server accepts (smp-wire.md §4.1)."""

_TLS13_SUITES = b"TLS_CHACHA20_POLY1305_SHA256"
_TLS12_SUITES = b"ECDHE-ECDSA-CHACHA20-POLY1305"
_SIGNATURES = b"ed448:ed25519"
# A longer chain than this and its leaf is no service's (smp-wire.md §4.2) and not worth verifying.
_VERIFY_DEPTH = 3

# It is a client's key share that decides: the apps send one for X448, which is taken. To offer
# X25519 alone makes them try again with that: measured, a server's part of the handshake then
# takes 0.49 ms instead of 0.81 (OpenSSL 4.0; 0.67 instead of 1.04 with 3.0), but each connection
# of theirs takes a round trip more, which over Tor is half a second.
GROUPS = (b"X25519", b"X448")
"""The groups for key agreement (smp-wire.md §4), cheapest first."""


class CredentialsError(ValueError):
    """A certificate chain or a private key cannot be used for TLS."""


class _NoCommonProtocolError(SSL.Error):
    """Raised in OpenSSL's callback so that it sends the alert no_application_protocol."""


def server_context(
    chain: Sequence[bytes],
    private_key: bytes,
    *,
    alpn: Sequence[bytes] = ALPN,
    request_client_certificate: bool = True,
    groups: Sequence[bytes] = GROUPS,
) -> SSL.Context:
    """The context of an SMP server.

    :param chain: the server's certificates, DER, leaf first.
    :param private_key: the leaf's Ed25519 or Ed448 key, PKCS#8 DER.
    :param alpn: protocols that may be agreed on. The first of the client's that is among them is
        taken; a client that offers only others is turned away; one that offers none is welcome.
    :param request_client_certificate: ask for a certificate. Whatever comes is accepted, whoever
        signed it: see :attr:`BlockTransport.peer_chain`.
    :param groups: for key agreement. Of the client's key shares the first that is among them is
        taken; X25519 alone saves two fifths of a handshake's cost with the apps, which prefer
        X448, and costs each of their connections a round trip.
    :raises CredentialsError: chain and key cannot be used, or not together.
    """
    context = _context(SSL.TLS_SERVER_METHOD, groups)
    _use_credentials(context, chain, private_key)
    offered = frozenset(alpn)

    def choose(connection: SSL.Connection, protocols: list[bytes]) -> bytes:
        for protocol in protocols:
            if protocol in offered:
                return protocol
        raise _NoCommonProtocolError

    context.set_alpn_select_callback(choose)
    if request_client_certificate:
        context.set_verify(SSL.VERIFY_PEER, _accept_any)
        context.set_verify_depth(_VERIFY_DEPTH)
    return context


def client_context(
    *,
    alpn: Sequence[bytes],
    chain: Sequence[bytes] = (),
    private_key: bytes | None = None,
) -> SSL.Context:
    """The context of an SMP client. It accepts any server: its chain must be checked afterwards.

    :param alpn: protocols to offer, best first; none means that the server speaks SMP v6 only.
    :param chain: the client's certificates if it has any: DER, leaf first.
    :param private_key: the leaf's Ed25519 or Ed448 key, PKCS#8 DER.
    :raises CredentialsError: chain and key cannot be used, or not together.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, GROUPS)
    # The reference does not know the renegotiation extension, without which OpenSSL speaks no 1.2.
    context.set_options(openssl.OP_LEGACY_SERVER_CONNECT)
    if chain or private_key is not None:
        _use_credentials(context, chain, private_key or b"")
    if alpn:
        context.set_alpn_protos(list(alpn))
    return context


def _accept_any(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    return True


def _context(method: int, groups: Sequence[bytes]) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_NO_TICKET
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(openssl.MODE_RELEASE_BUFFERS | openssl.MODE_ACCEPT_MOVING_WRITE_BUFFER)
    context.set_cipher_list(_TLS12_SUITES)
    if not openssl.set_ciphersuites(context, _TLS13_SUITES):
        # With another suite the session id would have another length (smp-wire.md §4.3).
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    openssl.set_groups(context, b":".join(groups))
    openssl.set_signature_algorithms(context, _SIGNATURES)
    openssl.set_no_tickets(context)
    return context


def _use_credentials(context: SSL.Context, chain: Sequence[bytes], private_key: bytes) -> None:
    if not chain:
        raise CredentialsError("the certificate chain is empty")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        key = load_der_private_key(private_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CredentialsError("a certificate or the private key cannot be read") from None
    if not isinstance(key, (Ed25519PrivateKey, Ed448PrivateKey)):
        raise CredentialsError("the private key is neither an Ed25519 nor an Ed448 key")
    any_context: Any = context
    try:
        try:
            any_context.use_certificate(certificates[0])
            issuers: list[Any] = list(certificates[1:])
            any_key: Any = key
        except TypeError:
            # pyOpenSSL before 24.3 takes only objects of its own, later ones rather the others.
            any_context.use_certificate(crypto.X509.from_cryptography(certificates[0]))
            issuers = [crypto.X509.from_cryptography(each) for each in certificates[1:]]
            any_key = crypto.PKey.from_cryptography_key(key)
        for issuer in issuers:
            any_context.add_extra_chain_cert(issuer)
        any_context.use_privatekey(any_key)
        context.check_privatekey()
    except SSL.Error:
        raise CredentialsError("the private key is not that of the first certificate") from None
