"""Queue addresses and connection requests: texts and binary forms.

docs/spec/smp-wire.md §13, docs/spec/smp-agent.md §2-3, conformance 28-36.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.test_addresses import locations
from tests.txsimplex.vectors import Vector, load, name_of, same, value
from txsimplex.addresses import Host, RelayLocation, ServerAddress, parse_hosts
from txsimplex.encoding import ParseError, whole
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.links import (
    KEM_CIPHERTEXT_SIZE,
    KEM_KEY_SIZE,
    QUEUE_RANGE,
    ConnectionRequest,
    E2EParameters,
    KemParameters,
    QueueAddress,
    Site,
)
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.versions import VersionRange

ONIONS = {
    Host.parse("smp4.simplex.im"): Host.parse(
        "o5vmywmrnaxalvz6wi3zicyftgio6psuvyniis6gco6bp6ekl4cqj4id.onion"
    )
}
"""The only known server of the vectors: its onion host comes from "queue-uri/preset-host-v1"."""

SERVER = ServerAddress.parse("smp://AAAA@a.b").location
DH = PublicKey(Algorithm.X25519, bytes(32))
X448 = PublicKey(Algorithm.X448, bytes(56))


def location_of(fields: dict[str, Any]) -> RelayLocation:
    """A server from the fields of a vector."""
    hosts = parse_hosts(",".join(fields["hosts"]))
    return RelayLocation(hosts, fields["port"], value(fields["key_hash"]))


def queue_of(fields: dict[str, Any]) -> QueueAddress:
    """A queue from the fields of a vector."""
    mode = fields["mode"]
    return QueueAddress(
        VersionRange(*fields["versions"]),
        location_of(fields["server"]),
        value(fields["sender_id"]),
        PublicKey.decode(value(fields["dh_key"])),
        None if mode is None else QueueMode[mode.upper()],
    )


def e2e_of(fields: dict[str, Any]) -> E2EParameters:
    """End-to-end parameters from the fields of a vector."""
    kem = fields["kem"]
    return E2EParameters(
        VersionRange(*fields["versions"]),
        PublicKey.decode(value(fields["key1"])),
        PublicKey.decode(value(fields["key2"])),
        None if kem is None else KemParameters(value(kem)),
    )


def request_of(fields: dict[str, Any]) -> ConnectionRequest:
    """A connection request from the fields of a vector."""
    site = None
    if fields["scheme"] != "simplex:":
        host, _, port = fields["scheme"].removeprefix("https://").partition(":")
        site = Site(Host.parse(host), port)
    assert (fields["mode"] == "invitation") is ("e2e" in fields)
    return ConnectionRequest(
        VersionRange(*fields["agent_versions"]),
        tuple(map(queue_of, fields["queues"])),
        e2e_of(fields["e2e"]) if "e2e" in fields else None,
        fields["client_data"],
        site,
    )


def decoded(given: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What a vector decodes to."""
    result: dict[str, Any] = fields if given == "same" else given
    return result


class TestQueueAddresses:
    @pytest.mark.parametrize("vector", load("addresses", "queue-uri"), ids=name_of)
    def test_text_read(self, vector: Vector) -> None:
        if "parsed" not in vector:
            with pytest.raises(ParseError):
                QueueAddress.parse(vector["text"], ONIONS)
            return
        queue = QueueAddress.parse(vector["text"], ONIONS)
        assert queue == queue_of(vector["parsed"]["fields"])
        canonical = vector["parsed"]["canonical"]
        assert str(queue) == (vector["text"] if canonical == "same" else canonical)

    @pytest.mark.parametrize("vector", load("addresses", "queue-uri-encode"), ids=name_of)
    def test_written(self, vector: Vector) -> None:
        fields = vector["fields"]
        queue = queue_of(fields)
        assert str(queue) == vector["text"]
        assert QueueAddress.parse(vector["text"]) == queue_of(
            decoded(vector["text_decodes_to"], fields)
        )
        assert same(vector["binary"], queue.encode())
        assert whole(queue.encode(), QueueAddress.read) == queue_of(
            decoded(vector["binary_decodes_to"], fields)
        )

    @pytest.mark.parametrize("vector", load("addresses", "queue-info"), ids=name_of)
    def test_of_one_version(self, vector: Vector) -> None:
        data = queue_of(vector["queue"]).encode_info(vector["version"])
        assert same(vector["binary"], data)
        assert whole(data, QueueAddress.read_info) == queue_of(vector["decodes_to"])

    def test_known_onion_hosts_in_binary(self) -> None:
        [host] = ONIONS
        location = ServerAddress.parse(f"smp://AAAA@{host}").location
        queue = QueueAddress(VersionRange(1, 1), location, b"id", DH)
        read = whole(queue.encode_info(1), lambda reader: QueueAddress.read_info(reader, ONIONS))
        assert read.server.hosts == (host, ONIONS[host])

    def test_conformance_28_and_29(self) -> None:
        server = ServerAddress.parse("smp://AAAA@a.b,c.onion,d.e:5223").location
        queue = QueueAddress(VersionRange(1, 4), server, b"\0\0\0", DH, QueueMode.MESSAGING)
        head, _, query = str(queue).partition("#/?")
        assert head == "smp://AAAA@a.b:5223/AAAA"
        names = [parameter.partition("=")[0] for parameter in query.split("&")]
        assert names == ["v", "dh", "q", "k", "srv"]
        assert query.endswith("&srv=c.onion%2Cd.e")
        queue = QueueAddress(VersionRange(2, 4), server, b"\0\0\0", DH, QueueMode.MESSAGING)
        assert str(queue).startswith("smp://AAAA@a.b,c.onion,d.e:5223/AAAA#/?v=2-4&dh=")
        assert "srv" not in str(queue)

    @pytest.mark.parametrize(
        ("parameters", "mode"),
        [
            ("", None),
            ("&k=s", QueueMode.MESSAGING),
            ("&q=c", QueueMode.CONTACT),
            ("&q=m", QueueMode.MESSAGING),
            ("&k=t", None),
        ],
    )
    def test_conformance_32(self, parameters: str, mode: QueueMode | None) -> None:
        base = str(QueueAddress(QUEUE_RANGE, SERVER, b"id", DH))
        assert QueueAddress.parse(base + parameters).mode is mode

    def test_no_secret_in_repr(self) -> None:
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"sender", DH)
        assert "sender" not in repr(queue)

    def test_too_much_to_send(self) -> None:
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"\0" * 256, DH)
        with pytest.raises(ParseError):
            QueueAddress.parse(str(queue))
        hosts = parse_hosts(",".join(["a"] * 255))
        server = RelayLocation((*hosts, *hosts), "", b"k")
        with pytest.raises(ParseError):
            QueueAddress.parse(str(QueueAddress(QUEUE_RANGE, server, b"id", DH)))


class TestConnectionRequests:
    @pytest.mark.parametrize("vector", load("addresses", "conn-req"), ids=name_of)
    def test_text_read(self, vector: Vector) -> None:
        if "parsed" not in vector:
            with pytest.raises(ParseError):
                ConnectionRequest.parse(vector["text"])
            return
        request = ConnectionRequest.parse(vector["text"])
        assert request == request_of(vector["parsed"]["fields"])
        canonical = vector["parsed"]["canonical"]
        assert str(request) == (vector["text"] if canonical == "same" else canonical)

    @pytest.mark.parametrize("vector", load("addresses", "conn-req-encode"), ids=name_of)
    def test_written(self, vector: Vector) -> None:
        fields = vector["fields"]
        request = request_of(fields)
        assert str(request) == vector["text"]
        assert ConnectionRequest.parse(vector["text"]) == request_of(
            decoded(vector["text_decodes_to"], fields)
        )
        assert same(vector["binary"], request.encode())
        assert whole(request.encode(), ConnectionRequest.read) == request_of(
            decoded(vector["binary_decodes_to"], fields)
        )

    def test_conformance_34_to_36(self) -> None:
        e2e = E2EParameters(VersionRange(2, 3), X448, X448)
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"id", DH, QueueMode.CONTACT)
        invitation = ConnectionRequest(VersionRange(2, 7), (queue,), e2e, '{"a": "\u0416&=;"}')
        text = str(invitation)
        assert text.startswith("simplex:/invitation#/?v=2-7&smp=smp%3A%2F%2F")
        assert "&e2e=v%3D2-3%26x3dh%3D" in text
        site = text.replace("simplex:", "https://simplex.chat")
        assert ConnectionRequest.parse(text) == ConnectionRequest.parse(site) == invitation
        contact = ConnectionRequest(VersionRange(2, 7), (queue, queue))
        text = str(contact)
        assert text.startswith("simplex:/contact#/?v=2-7&smp=smp%3A%2F%2F")
        assert text.count("%3Bsmp") == 1
        assert ConnectionRequest.parse(text) == contact

    def test_no_secret_in_repr(self) -> None:
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"sender", DH)
        request = ConnectionRequest(VersionRange(2, 7), (queue,), client_data="secret")
        assert "sender" not in repr(request)
        assert "secret" not in repr(request)

    def test_at_least_one_queue(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            ConnectionRequest(VersionRange(2, 7), ())

    def test_too_much_to_send(self) -> None:
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"id", DH)
        for request in (
            ConnectionRequest(VersionRange(2, 7), (queue,) * 256),
            ConnectionRequest(VersionRange(2, 7), (queue,), client_data="a" * 65536),
        ):
            with pytest.raises(ParseError):
                ConnectionRequest.parse(str(request))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("x3dh%3D", "x3dh%3DAAAA%2C"),
            ("v%3D2-3", "v%3D2-3%26kem_key%3DAAAA"),
            ("x3dh", "y3dh"),
            ("v=2-7", "v=7-2"),
            ("v=2-7", "v=2-70000"),
            ("smp=", "smp=%3B"),
            ("smp=", "smp=%ff"),
            ("simplex:", "https://a.b:"),
            ("simplex:", "https://"),
        ],
    )
    def test_malformed(self, old: str, new: str) -> None:
        queue = QueueAddress(QUEUE_RANGE, SERVER, b"id", DH)
        e2e = E2EParameters(VersionRange(2, 3), X448, X448)
        text = str(ConnectionRequest(VersionRange(2, 7), (queue,), e2e))
        assert ConnectionRequest.parse(text).e2e == e2e
        assert old in text
        with pytest.raises(ParseError):
            ConnectionRequest.parse(text.replace(old, new, 1))


def public_keys(algorithm: Algorithm) -> st.SearchStrategy[PublicKey]:
    size = algorithm.key_size
    return st.binary(min_size=size, max_size=size).map(lambda raw: PublicKey(algorithm, raw))


def ranges(lowest: int, highest: int) -> st.SearchStrategy[VersionRange]:
    numbers = st.integers(lowest, highest)
    return st.tuples(numbers, numbers).map(lambda two: VersionRange(min(two), max(two)))


queues = st.builds(
    QueueAddress,
    ranges(0, 6),
    locations,
    st.binary(min_size=1, max_size=40),
    public_keys(Algorithm.X25519),
    st.none() | st.sampled_from(QueueMode),
)
kems = st.builds(
    KemParameters,
    st.binary(min_size=1, max_size=4).map(lambda seed: (seed * KEM_KEY_SIZE)[:KEM_KEY_SIZE]),
    st.none()
    | st.binary(min_size=1, max_size=4).map(
        lambda seed: (seed * KEM_CIPHERTEXT_SIZE)[:KEM_CIPHERTEXT_SIZE]
    ),
)
e2es = st.builds(
    E2EParameters,
    ranges(0, 4),
    public_keys(Algorithm.X448),
    public_keys(Algorithm.X448),
    st.none() | kems,
)
requests = st.builds(
    ConnectionRequest,
    ranges(2, 9),
    st.lists(queues, min_size=1, max_size=3).map(tuple),
    st.none() | e2es,
    st.none() | st.text(max_size=40),
)


@given(queues)
def test_queue_text_round_trip(queue: QueueAddress) -> None:
    assert QueueAddress.parse(str(queue)) == queue


@given(queues)
def test_queue_binary_round_trip(queue: QueueAddress) -> None:
    read = whole(queue.encode(), QueueAddress.read)
    assert (read.versions, read.server, read.sender_id, read.dh_key) == (
        queue.versions,
        queue.server,
        queue.sender_id,
        queue.dh_key,
    )
    if queue.versions.minimum >= 4:
        assert read.mode is queue.mode
    assert read.encode() == queue.encode()


@given(queues, st.integers(0, 6))
def test_queue_of_one_version_round_trip(queue: QueueAddress, version: int) -> None:
    data = queue.encode_info(version)
    read = whole(data, QueueAddress.read_info)
    assert read.versions == VersionRange(version, version)
    assert read.encode_info(version) == data


@given(e2es)
def test_e2e_round_trip(e2e: E2EParameters) -> None:
    assert whole(e2e.encode(), E2EParameters.read) == e2e
    parsed = E2EParameters.parse(str(e2e))
    assert parsed.kem == (e2e.kem if e2e.versions.maximum >= 3 else None)
    assert str(parsed) == str(e2e)


@given(requests)
def test_request_round_trip(request: ConnectionRequest) -> None:
    text = str(request)
    parsed = ConnectionRequest.parse(text)
    assert str(parsed) == text
    assert parsed.queues == request.queues
    assert parsed.client_data == request.client_data
    data = request.encode()
    read = whole(data, ConnectionRequest.read)
    assert (read.versions, read.e2e, read.client_data) == (
        request.versions,
        request.e2e,
        request.client_data,
    )
    assert whole(read.encode(), ConnectionRequest.read) == read


TEXTS = [v["text"] for v in load("addresses", "queue-uri", "conn-req") if len(v["text"]) < 1000]
BINARIES = [
    value(v["binary"])
    for v in load("addresses", "queue-uri-encode", "queue-info", "conn-req-encode")
    if isinstance(v["binary"], str)
]


@given(st.data())
def test_any_text_is_a_link_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 3))
        text = text[:position] + data.draw(st.text(max_size=3)) + text[position + cut :]
    for parse in (QueueAddress.parse, ConnectionRequest.parse):
        try:
            link = parse(text)
        except ParseError:
            continue
        assert parse(str(link)) == link
        assert link.encode()


@given(st.data())
def test_any_bytes_are_a_link_or_refused(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(BINARIES)))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.integers(0, len(changed)))] or changed
    for again in (queue_again, info_again, request_again):
        try:
            read = again(bytes(changed))
        except ParseError:
            continue
        assert again(read) == read


def queue_again(data: bytes) -> bytes:
    return whole(data, QueueAddress.read).encode()


def info_again(data: bytes) -> bytes:
    queue = whole(data, QueueAddress.read_info)
    return queue.encode_info(queue.versions.minimum)


def request_again(data: bytes) -> bytes:
    return whole(data, ConnectionRequest.read).encode()
