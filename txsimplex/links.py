"""Queue addresses and connection requests, as texts and in binary form.

The texts are what people exchange to connect (docs/spec/smp-wire.md §13,
docs/spec/smp-agent.md §2); the binary forms stand in link data and in agents'
messages (smp-agent.md §3). Who has one of these can use it once or write to its
owner, so the parts that make it out are in no repr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from txsimplex.addresses import (
    Host,
    RelayLocation,
    Scheme,
    ServerAddress,
    format_hosts,
    parse_hosts,
    scan_address,
    scan_host,
    scan_port,
)
from txsimplex.encoding import ParseError, Reader, large, maybe, nonempty, short, u16
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.scanning import Query, Scanner, from_base64url, percent_encoded, to_base64url
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.versions import VersionRange

_Sized = TypeVar("_Sized", bound=Sized)

QUEUE_RANGE: Final = VersionRange(1, 4)
"""Versions of SMP clients, which are other numbers than those of relays (§13)."""
SEVERAL_HOSTS: Final = 2
"""Several hosts in a server's address."""
SENDER_SECURES: Final = 3
"""The sender can secure the queue with SKEY."""
SHORT_LINKS: Final = 4
"""The mode of the queue is told."""

AGENT_RANGE: Final = VersionRange(2, 7)
POST_QUANTUM_E2E: Final = 3
"""The version of end-to-end encryption from which on it may be post-quantum."""

KEM_KEY_SIZE: Final = 1158
KEM_CIPHERTEXT_SIZE: Final = 1039

NO_ONIONS: Final[Mapping[Host, Host]] = {}

_PATH: Final = re.compile(r"/(invitation|contact)/?#/\?")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+=*")
_TEXT_MODES: Final = {QueueMode.MESSAGING: "m", QueueMode.CONTACT: "c"}
_MODES: Final = {
    b"M": QueueMode.MESSAGING,
    b"C": QueueMode.CONTACT,
    b"T": QueueMode.MESSAGING,
    b"F": QueueMode.CONTACT,
}


def _public_key(der: bytes, algorithm: Algorithm) -> PublicKey:
    key = PublicKey.decode(der)
    if key.algorithm is not algorithm:
        raise ParseError(f"not an {algorithm.name} key")
    return key


@dataclass(frozen=True, slots=True)
class QueueAddress:
    """Where and with which key to send: a queue as its sender knows it.

    `versions` are those of the SMP client, `mode` is None where it is not known.
    """

    versions: VersionRange
    server: RelayLocation
    sender_id: bytes = field(repr=False)
    dh_key: PublicKey
    mode: QueueMode | None = None

    def __str__(self) -> str:
        """The URI of the queue.

        Other hosts than the first stand in the parameter ``srv`` where a client that
        knows only one host may read it.
        """
        server, others = self.server, ""
        if self.versions.minimum < SEVERAL_HOSTS and len(server.hosts) > 1:
            server = replace(server, hosts=server.hosts[:1])
            others = f"&srv={percent_encoded(format_hosts(self.server.hosts[1:]))}"
        mode = ""
        if self.mode is not None:
            mode = f"&q={_TEXT_MODES[self.mode]}"
            if self.mode is QueueMode.MESSAGING and self.versions.minimum < SHORT_LINKS:
                mode += "&k=s"
        key = percent_encoded(to_base64url(self.dh_key.encode()))
        return (
            f"{ServerAddress(Scheme.SMP, server)}/{to_base64url(self.sender_id)}"
            f"#/?v={self.versions}&dh={key}{mode}{others}"
        )

    @classmethod
    def parse(cls, text: str, onions: Mapping[Host, Host] = NO_ONIONS) -> QueueAddress:
        """A queue from its URI, also from the old forms. Raises `ParseError`.

        `onions` has the onion hosts of servers that are known to have one. They are
        added to queues of the first client version, which have only one host.
        """
        scanner = Scanner(text)
        address = scan_address(scanner)
        if address.scheme is not Scheme.SMP or address.password is not None:
            raise ParseError("not the server of a queue")
        scanner.expect("/")
        sender_id = scanner.base64url()
        scanner.skip("/")
        scanner.expect("#")
        key = scanner.match(_KEY)
        if key is not None and scanner.position == len(text):
            query = Query("v=1")
        else:
            scanner.skip("/")
            scanner.expect("?")
            query = scanner.query()
            scanner.finish()
        key_text = query.required("dh") if key is None else key[0]
        others = query.get("srv")
        server = address.location
        if others:
            hosts = _at_most(255, server.hosts + parse_hosts(others))
            server = replace(server, hosts=hosts)
        versions = VersionRange.parse(query.required("v"))
        return cls(
            versions,
            _with_onion(server, onions) if versions.maximum < SEVERAL_HOSTS else server,
            _at_most(255, sender_id),
            _public_key(from_base64url(key_text), Algorithm.X25519),
            _text_mode(query),
        )

    def encode(self) -> bytes:
        """The binary form, with the range of versions.

        It has the mode only for the versions that know it, and ``F`` for a mode that
        is not known to version 3, as the reference writes it.
        """
        minimum, maximum = self.versions.minimum, self.versions.maximum
        secures = self.mode is QueueMode.MESSAGING
        suffix = b""
        if minimum >= SHORT_LINKS:
            suffix = b"" if self.mode is None else self.mode.value
        elif minimum >= SENDER_SECURES or (maximum >= SENDER_SECURES and secures):
            suffix = b"T" if secures else b"F"
        return self.versions.encode() + self.server.encode() + self._encode_keys() + suffix

    @classmethod
    def read(cls, reader: Reader) -> QueueAddress:
        """Reads what `encode` writes. Raises `ParseError`."""
        versions = VersionRange.read(reader)
        server = RelayLocation.read(reader)
        return cls._read_keys(reader, versions, server)

    def encode_info(self, version: int) -> bytes:
        """The binary form with one version, in which agents tell each other of queues."""
        server = self.server.encode()
        suffix = b""
        if version < SEVERAL_HOSTS:
            # One host without a count.
            server = replace(self.server, hosts=self.server.hosts[:1]).encode()[1:]
        elif version >= SHORT_LINKS:
            suffix = b"" if self.mode is None else self.mode.value
        elif version >= SENDER_SECURES and self.mode is QueueMode.MESSAGING:
            suffix = b"T"
        return u16(version) + server + self._encode_keys() + suffix

    @classmethod
    def read_info(cls, reader: Reader, onions: Mapping[Host, Host] = NO_ONIONS) -> QueueAddress:
        """Reads what `encode_info` writes; the range is of that one version.

        `onions` as for `parse`. Raises `ParseError`.
        """
        version = reader.u16()
        if version < SEVERAL_HOSTS:
            host = Host.read(reader)
            server = RelayLocation((host,), reader.short().decode("latin-1"), reader.short())
            server = _with_onion(server, onions)
        else:
            server = RelayLocation.read(reader)
        return cls._read_keys(reader, VersionRange(version, version), server)

    def _encode_keys(self) -> bytes:
        return short(self.sender_id) + short(self.dh_key.encode())

    @classmethod
    def _read_keys(
        cls, reader: Reader, versions: VersionRange, server: RelayLocation
    ) -> QueueAddress:
        sender_id = reader.short()
        key = _public_key(reader.short(), Algorithm.X25519)
        # The mode has no tag of its own, and nothing that follows begins with its letters.
        mode = _MODES.get(reader.data[reader.position : min(reader.position + 1, reader.end)])
        if mode is not None:
            reader.position += 1
        return cls(versions, server, sender_id, key, mode)


def _with_onion(server: RelayLocation, onions: Mapping[Host, Host]) -> RelayLocation:
    if len(server.hosts) == 1 and server.hosts[0] in onions:
        return replace(server, hosts=(server.hosts[0], onions[server.hosts[0]]))
    return server


def _at_most(size: int, value: _Sized) -> _Sized:
    """`value`, which can be sent: its form has no room for more than `size` items."""
    if len(value) > size:
        raise ParseError("a part too long")
    return value


def _text_mode(query: Query) -> QueueMode | None:
    mode = query.get("q")
    if mode == "m":
        return QueueMode.MESSAGING
    if mode == "c":
        return QueueMode.CONTACT
    return QueueMode.MESSAGING if query.get("k") == "s" else None


@dataclass(frozen=True, slots=True)
class KemParameters:
    """The post-quantum part of `E2EParameters`: a key proposed, or an answer to one.

    `ciphertext` is there when a proposal is accepted; `key` is then the next one.
    """

    key: bytes = field(repr=False)
    ciphertext: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """``P`` and the key, or ``A``, the ciphertext and the key."""
        if self.ciphertext is None:
            return b"P" + large(self.key)
        return b"A" + large(self.ciphertext) + large(self.key)

    @classmethod
    def read(cls, reader: Reader) -> KemParameters:
        """Reads what `encode` writes. Raises `ParseError`."""
        tag = reader.take(1)
        if tag == b"P":
            return cls._checked(reader.large(), None)
        if tag == b"A":
            ciphertext = reader.large()
            return cls._checked(reader.large(), ciphertext)
        raise ParseError("not KEM parameters")

    @classmethod
    def _checked(cls, key: bytes, ciphertext: bytes | None) -> KemParameters:
        if len(key) != KEM_KEY_SIZE or (
            ciphertext is not None and len(ciphertext) != KEM_CIPHERTEXT_SIZE
        ):
            raise ParseError("not KEM parameters")
        return cls(key, ciphertext)

    @classmethod
    def from_query(cls, query: Query) -> KemParameters | None:
        """From the parameters ``kem_key`` and ``kem_ct``. Raises `ParseError`."""
        key = query.get("kem_key")
        if key is None:
            return None
        ciphertext = query.get("kem_ct")
        return cls._checked(
            from_base64url(key), None if ciphertext is None else from_base64url(ciphertext)
        )


@dataclass(frozen=True, slots=True)
class E2EParameters:
    """Keys for the end-to-end encryption with whoever made an invitation: two of X448."""

    versions: VersionRange
    key1: PublicKey
    key2: PublicKey
    kem: KemParameters | None = None

    def __str__(self) -> str:
        """The text, which is itself a list of parameters; the KEM only from version 3 on."""
        keys = ",".join(to_base64url(key.encode()) for key in (self.key1, self.key2))
        text = f"v={self.versions}&x3dh={keys}"
        if self.kem is not None and self.versions.maximum >= POST_QUANTUM_E2E:
            if self.kem.ciphertext is not None:
                text += f"&kem_ct={to_base64url(self.kem.ciphertext)}"
            text += f"&kem_key={to_base64url(self.kem.key)}"
        return text

    @classmethod
    def parse(cls, text: str) -> E2EParameters:
        """Parameters from their text. Raises `ParseError`."""
        query = Query(text)
        versions = VersionRange.parse(query.required("v"))
        keys = query.required("x3dh").split(",")
        if len(keys) != 2:
            raise ParseError("not two keys")
        key1, key2 = (_public_key(from_base64url(key), Algorithm.X448) for key in keys)
        kem = None
        if versions.maximum >= POST_QUANTUM_E2E:
            kem = KemParameters.from_query(query)
        return cls(versions, key1, key2, kem)

    def encode(self) -> bytes:
        """The binary form."""
        keys = short(self.key1.encode()) + short(self.key2.encode())
        return self.versions.encode() + keys + maybe(self.kem, KemParameters.encode)

    @classmethod
    def read(cls, reader: Reader) -> E2EParameters:
        """Reads what `encode` writes. Raises `ParseError`."""
        versions = VersionRange.read(reader)
        key1 = _public_key(reader.short(), Algorithm.X448)
        key2 = _public_key(reader.short(), Algorithm.X448)
        return cls(versions, key1, key2, reader.maybe(lambda: KemParameters.read(reader)))


@dataclass(frozen=True, slots=True)
class Site:
    """The web site that a connection request is a page of."""

    host: Host
    port: str = ""

    def __str__(self) -> str:
        return f"https://{self.host}{':' if self.port else ''}{self.port}"


@dataclass(frozen=True, slots=True)
class ConnectionRequest:
    """How to connect: an invitation for one, or with `e2e` None a contact address.

    `versions` are those of the agent. `site` is only for printing; a request that
    was read has none.
    """

    versions: VersionRange
    queues: tuple[QueueAddress, ...]
    e2e: E2EParameters | None = None
    client_data: str | None = field(default=None, repr=False)
    site: Site | None = None

    def __post_init__(self) -> None:
        if not self.queues:
            raise ValueError("a connection request has at least one queue")

    def __str__(self) -> str:
        """The link."""
        scheme = "simplex:" if self.site is None else str(self.site)
        mode = "contact" if self.e2e is None else "invitation"
        queues = percent_encoded(";".join(map(str, self.queues)))
        text = f"{scheme}/{mode}#/?v={self.versions}&smp={queues}"
        if self.e2e is not None:
            text += f"&e2e={percent_encoded(str(self.e2e))}"
        if self.client_data is not None:
            text += f"&data={percent_encoded(self.client_data)}"
        return text

    @classmethod
    def parse(cls, text: str, onions: Mapping[Host, Host] = NO_ONIONS) -> ConnectionRequest:
        """A request from its link, of ``simplex:`` or a web site. Raises `ParseError`.

        The versions of a contact address are raised to 2 at least, as in the
        reference. `onions` as for `QueueAddress.parse`.
        """
        scanner = Scanner(text)
        if not scanner.skip("simplex:"):
            scanner.expect("https://")
            scan_host(scanner)
            scan_port(scanner)
        path = scanner.match(_PATH)
        if path is None:
            raise ParseError("not the path of a connection request")
        query = scanner.query()
        scanner.finish()
        versions = VersionRange.parse(query.required("v"))
        e2e = None
        if path[1] == "invitation":
            e2e = E2EParameters.parse(query.required("e2e"))
        else:
            lowest = AGENT_RANGE.minimum
            versions = VersionRange(max(versions.minimum, lowest), max(versions.maximum, lowest))
        queues = _at_most(255, query.required("smp").split(";"))
        client_data = query.get("data")
        if client_data is not None:
            _at_most(65535, client_data.encode("utf-8"))
        return cls(
            versions,
            tuple(QueueAddress.parse(queue, onions) for queue in queues),
            e2e,
            client_data,
        )

    def encode(self) -> bytes:
        """The binary form, which does not have the site."""
        client_data = None if self.client_data is None else self.client_data.encode("utf-8")
        data = (
            self.versions.encode()
            + nonempty(self.queues, QueueAddress.encode)
            + maybe(client_data, large)
        )
        return b"C" + data if self.e2e is None else b"I" + data + self.e2e.encode()

    @classmethod
    def read(cls, reader: Reader) -> ConnectionRequest:
        """Reads what `encode` writes; a queue without mode is then one of contact mode.

        Raises `ParseError`.
        """
        tag = reader.take(1)
        if tag not in {b"I", b"C"}:
            raise ParseError("not a connection request")
        versions = VersionRange.read(reader)
        queues: list[QueueAddress] = reader.nonempty(lambda: QueueAddress.read(reader))
        client_data = reader.maybe(reader.large)
        try:
            text = None if client_data is None else client_data.decode("utf-8")
        except UnicodeDecodeError:
            raise ParseError("not UTF-8") from None
        return cls(
            versions,
            tuple(replace(queue, mode=queue.mode or QueueMode.CONTACT) for queue in queues),
            E2EParameters.read(reader) if tag == b"I" else None,
            text,
        )
