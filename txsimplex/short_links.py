"""Short links: their texts and binary forms, and the keys derived from them.

A short link has only a key and where to ask; what it stands for is encrypted with
that key and kept at the relay (docs/spec/smp-wire.md §13, docs/spec/smp-agent.md
§2.4, §3, §4; `txsimplex.link_data`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from txsimplex.addresses import (
    Host,
    RelayLocation,
    format_hosts,
    parse_hosts,
    scan_host,
)
from txsimplex.boxes import hkdf
from txsimplex.encoding import ParseError, Reader, short
from txsimplex.scanning import (
    Query,
    Scanner,
    decimal,
    from_base64url,
    percent_encoded,
    to_base64url,
)

_LONGEST: Final = 255
_PATH: Final = re.compile(r"/([iacgrACGR])/?#")
_LINK_ID_SIZE: Final = 24
_KEY_SIZE: Final = 32


class LinkKind(Enum):
    """What a short link leads to; the value is the letter in its path."""

    INVITATION = "i"
    CONTACT = "a"
    CHANNEL = "c"
    GROUP = "g"
    RELAY = "r"

    @property
    def tag(self) -> bytes:
        """The beginning of the binary form."""
        letter = self.value.upper().encode("ascii")
        return letter if self is LinkKind.INVITATION else b"C" + letter


class LinkScheme(Enum):
    """How a short link begins."""

    SIMPLEX = "simplex"
    HTTPS = "https"
    """A page at the first host of the server."""


_TAGS: Final = {kind.tag: kind for kind in LinkKind}


@dataclass(frozen=True, slots=True)
class ShortLink:
    """A short link. Only invitations have a `link_id`; for others the key gives it.

    The port and the key hash of `server` may be empty where its first host is that
    of a server known to whoever reads the link.
    """

    kind: LinkKind
    server: RelayLocation
    link_key: bytes = field(repr=False)
    link_id: bytes | None = field(default=None, repr=False)
    scheme: LinkScheme = LinkScheme.HTTPS

    def __post_init__(self) -> None:
        if (self.kind is LinkKind.INVITATION) != (self.link_id is not None):
            raise ValueError("invitations have a link id, others have none")

    def __str__(self) -> str:
        """The text."""
        hosts = self.server.hosts
        authority = "simplex:"
        if self.scheme is LinkScheme.HTTPS:
            authority, hosts = f"https://{hosts[0]}", hosts[1:]
        link_id = "" if self.link_id is None else to_base64url(self.link_id, padded=False) + "/"
        parameters = {
            "h": percent_encoded(format_hosts(hosts)),
            "p": self.server.port,
            "c": to_base64url(self.server.key_hash, padded=False),
        }
        query = "&".join(f"{name}={value}" for name, value in parameters.items() if value)
        key = to_base64url(self.link_key, padded=False)
        return f"{authority}/{self.kind.value}#{link_id}{key}{'?' if query else ''}{query}"

    @classmethod
    def parse(cls, text: str) -> ShortLink:
        """A link from its text. Raises `ParseError`."""
        scanner = Scanner(text)
        scheme, hosts = _scan_authority(scanner)
        path = scanner.match(_PATH)
        if path is None:
            raise ParseError("not the path of a short link")
        kind = LinkKind(path[1].lower())
        link_id = None
        if kind is LinkKind.INVITATION:
            link_id = scanner.base64url()
            scanner.expect("/")
        link_key = scanner.base64url()
        query = scanner.query() if scanner.skip("?") else Query("")
        scanner.finish()
        server = _server(hosts, query)
        if max(len(server.hosts), len(link_key), len(link_id or b"")) > _LONGEST:
            raise ParseError("a part too long")
        return cls(kind, server, link_key, link_id, scheme)

    def encode(self) -> bytes:
        """The binary form, which does not have the scheme."""
        link_id = b"" if self.link_id is None else short(self.link_id)
        return self.kind.tag + self.server.encode() + link_id + short(self.link_key)

    @classmethod
    def read(cls, reader: Reader) -> ShortLink:
        """Reads what `encode` writes. Raises `ParseError`."""
        tag = reader.take(1)
        kind = _TAGS.get(tag if tag == LinkKind.INVITATION.tag else tag + reader.take(1))
        if kind is None:
            raise ParseError("not a short link")
        server = RelayLocation.read(reader)
        link_id = reader.short() if kind is LinkKind.INVITATION else None
        return cls(kind, server, reader.short(), link_id)


def _scan_authority(scanner: Scanner) -> tuple[LinkScheme, tuple[Host, ...]]:
    if scanner.skip("simplex:"):
        return LinkScheme.SIMPLEX, ()
    scanner.expect("https://")
    return LinkScheme.HTTPS, (scan_host(scanner),)


def _server(hosts: tuple[Host, ...], query: Query) -> RelayLocation:
    others = query.get("h")
    if others is not None:
        hosts += parse_hosts(others)
    if not hosts:
        raise ParseError("a link without a host")
    port = query.get("p")
    key_hash = from_base64url(query.get("c") or "")
    if len(key_hash) > _LONGEST:
        raise ParseError("a part too long")
    return RelayLocation(hosts, "" if port is None else str(decimal(port, 65535)), key_hash)


def link_key_of(fixed_data: bytes) -> bytes:
    """The key of a link, 32 bytes: SHA3-256 of its fixed data, not yet signed."""
    return hashlib.sha3_256(fixed_data).digest()


def contact_link_secrets(link_key: bytes) -> tuple[bytes, bytes]:
    """The id of a contact link, 24 bytes, and the key of its data, 32 bytes."""
    derived = hkdf(b"", link_key, b"SimpleXContactLink", _LINK_ID_SIZE + _KEY_SIZE)
    return derived[:_LINK_ID_SIZE], derived[_LINK_ID_SIZE:]


def invitation_link_secret(link_key: bytes) -> bytes:
    """The key of an invitation link's data, 32 bytes; the relay gives the link's id."""
    return hkdf(b"", link_key, b"SimpleXInvLink", _KEY_SIZE)
