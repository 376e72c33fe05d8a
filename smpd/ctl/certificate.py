"""`smpctl certificate`: the relay's online certificate, shown and renewed."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from smpd.config import ServerSettings, load
from smpd.credentials import read_certificates, read_identity, read_key, replace_pair
from smpd.ctl.configuration import add_configuration_to
from smpd.ctl.errors import CommandError
from txsimplex.certificates import (
    Certificate,
    CertificateError,
    Fault,
    ServerIdentity,
    fingerprint,
)
from txsimplex.issuing import make_online, renew_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.pem import encode_certificates, encode_key
from txsimplex.scanning import to_base64url

ALGORITHMS = {"ed25519": Algorithm.ED25519, "ed448": Algorithm.ED448}
_SLOW_CLOCKS = timedelta(hours=1)
_LONGEST_NAME = 64
"""Characters of a common name, which no client of the network looks at."""

_EXAMPLES = """\
examples:
  smpctl certificate show
  smpctl certificate rotate --ca-key /media/usb/ca.key
"""
_ROTATE_EXAMPLES = """\
examples:
  smpctl certificate rotate
  smpctl certificate rotate --ca-key /media/usb/ca.key
  smpctl certificate rotate --ca-key /media/usb/ca.key --algorithm ed448
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "certificate",
        help="show or renew the online certificate",
        description="Shows or renews the certificate that clients see in TLS.",
        epilog=_EXAMPLES,
    )
    actions = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = actions.add_parser(
        "show",
        help="show the online certificate and the identity",
        description="Checks the certificates as a client would, and shows them.",
        epilog="examples:\n  smpctl certificate show",
    )
    add_configuration_to(show)
    show.set_defaults(command=_show)
    rotate = actions.add_parser(
        "rotate",
        help="make a new online key and certificate",
        description="Makes a new online key and a certificate for it, which the key of the "
        "offline CA signs. The relay's address stays the same.",
        epilog=_ROTATE_EXAMPLES,
    )
    rotate.add_argument(
        "--ca-key",
        type=Path,
        metavar="PATH",
        help="key of the offline CA (default: beside its certificate, ending in .key)",
    )
    add_algorithm_to(rotate, "that of the present key")
    add_configuration_to(rotate)
    rotate.set_defaults(command=_rotate)


def add_algorithm_to(command: argparse.ArgumentParser, default: str) -> None:
    """Adds the option `--algorithm`, which is None when it is not given."""
    command.add_argument(
        "--algorithm",
        choices=sorted(ALGORITHMS),
        help=f"algorithm of the key: ed25519 or ed448 (default: {default})",
    )


def common_name(server: ServerSettings) -> str | None:
    """The name in the online certificate: the first host, None without hosts."""
    return str(server.hosts[0])[:_LONGEST_NAME] if server.hosts else None


def start_of_validity(now: datetime) -> datetime:
    """The time from which a certificate made now is valid, for clients whose clocks are slow."""
    return now - _SLOW_CLOCKS


def _show(arguments: argparse.Namespace) -> None:
    server = load(arguments.config).server
    now = datetime.now(UTC)
    identity = read_identity(server.certificate, server.key, server.ca_certificate, now)
    names = ["Online certificate", "Identity", *["Authority above it"] * 2]
    for name, der in zip(names, identity.chain, strict=False):
        certificate = Certificate.decode(der)
        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
        algorithm = "another algorithm" if certificate.key is None else certificate.key.algorithm
        shown = algorithm.name.capitalize() if isinstance(algorithm, Algorithm) else algorithm
        print(f"{name}: {subject}")
        print(f"  Algorithm:   {shown}")
        print(
            f"  Valid:       {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"
        )
        print(f"  Fingerprint: {to_base64url(fingerprint(der))}")


def _rotate(arguments: argparse.Namespace) -> None:
    server = load(arguments.config).server
    authority = read_certificates(server.ca_certificate)
    authority_key = _authority_key(server, arguments.ca_key)
    algorithm = ALGORITHMS[arguments.algorithm] if arguments.algorithm else None
    now = datetime.now(UTC)
    try:
        certificate, key = _renewed(server, authority[0], authority_key, algorithm, now)
        ServerIdentity.checked([certificate], key, authority, now)
    except CertificateError as error:
        if error.fault is Fault.WRONG_KEY:
            raise CommandError(f"the CA key is not that of {server.ca_certificate}") from None
        raise CommandError(f"{server.ca_certificate}: {error.fault.value}") from None
    replace_pair(
        server.certificate, server.key, encode_certificates([certificate]), encode_key(key)
    )
    print(f"New {key.algorithm.name.capitalize()} key in {server.key}")
    print(f"New certificate in {server.certificate}")
    print("A running relay takes them when it gets SIGHUP; its address stays the same.")


def _authority_key(server: ServerSettings, path: Path | None) -> PrivateKey:
    if path is None:
        path = server.ca_certificate.with_suffix(".key")
    if not path.exists():
        raise CommandError(
            f"the CA key {path} is not there: say with --ca-key where it is, "
            "or bring it back from where it is kept"
        )
    return read_key(path)


def _renewed(
    server: ServerSettings,
    authority: bytes,
    authority_key: PrivateKey,
    algorithm: Algorithm | None,
    now: datetime,
) -> tuple[bytes, PrivateKey]:
    """A new online certificate in DER with its key, also when there is no old one any more."""
    name = common_name(server)
    since = start_of_validity(now)
    if server.certificate.exists():
        return renew_online(
            read_certificates(server.certificate)[0],
            authority,
            authority_key,
            since,
            os.urandom,
            common_name=name,
            algorithm=algorithm,
        )
    if name is None:
        raise CommandError(
            f"{server.certificate} is not there, and the configuration sets no hosts "
            "to make a new one for"
        )
    key = PrivateKey.generate(algorithm or Algorithm.ED25519, os.urandom)
    return make_online(name, key.public, authority, authority_key, since, os.urandom), key
