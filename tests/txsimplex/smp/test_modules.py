"""The smaller second set of vectors, made separately from the same modules (smp-wire.md §17).

The vectors ``proxy …`` (the layers of private routing) and ``str Message …`` (the
messages file) belong to parts that are not made yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.txsimplex.vectors import Vector, load, name_of
from txsimplex.addresses import Host, RelayLocation, Scheme, ServerAddress
from txsimplex.boxes import BoxKey, authenticator, block_chains
from txsimplex.certificates import SignedKey
from txsimplex.encoding import short
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, messages as m
from txsimplex.smp.bodies import encode_message_body, encode_quota_body, seal_body, seal_meta
from txsimplex.smp.commands import (
    LinkData,
    LinkRequest,
    NotifierRequest,
    QueueMode,
    QueueRequest,
    Role,
)
from txsimplex.smp.errors import (
    BlockingInformation,
    BlockingReason,
    Error,
    Notice,
    blocked,
    store_error,
)
from txsimplex.smp.hellos import ClientHello, ServerHello, ServiceResponse
from txsimplex.smp.messages import NotifierIds
from txsimplex.smp.transmissions import Framing, Transmission, frame
from txsimplex.smp.versions import VersionRange

LATER = ("proxy ", "str Message")
SESSION_ID = bytes(range(32))
CORR_ID = bytes(range(24))
MSG_ID = bytes(range(100, 124))
TIME = 1700000000
SPAM = BlockingInformation(BlockingReason.SPAM, Notice(86400))
SPAM_FOR_A_MINUTE = BlockingInformation(BlockingReason.SPAM, Notice(60))


def eid(first: int) -> bytes:
    return bytes(range(first, first + 24))


def ed25519(number: int) -> PrivateKey:
    return PrivateKey(Algorithm.ED25519, bytes((number,)) * 32)


def x25519(number: int) -> PrivateKey:
    return PrivateKey(Algorithm.X25519, bytes((number,)) * 32)


LINK = LinkData(b"fixed", b"user")
LOCATION = RelayLocation(
    (Host.parse("smp.example.com"), Host.parse("abc.onion")), "5223", bytes(range(1, 33))
)
LOCATION_BY_NUMBER = RelayLocation((Host.parse("1.2.3.4"),), "", bytes(range(1, 33)))
BODY_KEY = BoxKey(x25519(3).exchange(x25519(2).public))


def new(
    mode: QueueMode | None,
    link: LinkRequest | None = None,
    password: bytes | None = None,
    subscribe: bool = True,
    notifier: NotifierRequest | None = None,
) -> c.New:
    request = None if mode is None else QueueRequest(mode, link)
    return c.New(ed25519(1).public, x25519(2).public, password, subscribe, request, notifier)


COMMANDS: dict[str, c.Command] = {
    "NEW noauth S M": new(QueueMode.MESSAGING),
    "NEW auth=pw C contact": new(QueueMode.CONTACT, password=b"pw", subscribe=False),
    "NEW Mdata": new(QueueMode.MESSAGING, LinkRequest(eid(100), LINK)),
    "NEW Cdata+ntf": new(
        QueueMode.CONTACT,
        LinkRequest(eid(100), LINK, eid(130)),
        notifier=NotifierRequest(x25519(4).public, x25519(3).public),
    ),
    "NEW nomode": new(None),
    "SUB": c.Sub(),
    "SUBS": c.Subs(),
    "KEY": c.Key(ed25519(1).public),
    "RKEY": c.Rkey([ed25519(1).public, x25519(4).public]),
    "LSET": c.Lset(eid(130), LINK),
    "LDEL": c.Ldel(),
    "NKEY": c.Nkey(x25519(4).public, x25519(3).public),
    "NDEL": c.Ndel(),
    "GET": c.Get(),
    "ACK": c.Ack(MSG_ID),
    "OFF": c.Off(),
    "DEL": c.Del(),
    "QUE": c.Que(),
    "SKEY": c.Skey(ed25519(1).public),
    "SEND F hello": c.Send(False, b"hello"),
    "SEND T hello": c.Send(True, b"hello"),
    "PING": c.Ping(),
    "LKEY": c.Lkey(ed25519(1).public),
    "LGET": c.Lget(),
    "NSUB": c.Nsub(),
    "NSUBS": c.Nsubs(),
    "PRXY auth": c.Prxy(LOCATION, b"pw"),
    "PRXY noport noauth": c.Prxy(LOCATION_BY_NUMBER),
    "PFWD": c.Pfwd(17, x25519(7).public, b"enc"),
    "RFWD": c.Rfwd(b"enc"),
}


def ids(mode: QueueMode, **more: Any) -> m.Ids:
    return m.Ids(eid(10), eid(40), x25519(3).public, mode, **more)


MESSAGES: dict[str, m.Message] = {
    "IDS M": ids(QueueMode.MESSAGING),
    "IDS C link service ntf": ids(
        QueueMode.CONTACT,
        link_id=eid(130),
        service_id=eid(160),
        notifier=NotifierIds(eid(190), x25519(2).public),
    ),
    "LNK": m.Lnk(eid(40), LINK),
    "SOK none": m.Sok(),
    "SOK service": m.Sok(eid(160)),
    "SOKS 2": m.Soks(2),
    "MSG": m.Msg(MSG_ID, b"body"),
    "NID": m.Nid(eid(190), x25519(2).public),
    "NMSG": m.Nmsg(CORR_ID, b"meta"),
    "RRES": m.Rres(b"x"),
    "PRES": m.Pres(b"x"),
    "END": m.End(),
    "ENDS 1": m.Ends(1),
    "DELD": m.Deld(),
    "OK": m.Ok(),
    "PONG": m.Pong(),
    "ERR BLOCKED spam notice": m.Err(blocked(SPAM)),
    "ERR BLOCKED content notice-no-ttl": m.Err(
        blocked(BlockingInformation(BlockingReason.CONTENT, Notice(None)))
    ),
}
SPECIAL_ERRORS = {
    "STORE": store_error("some text"),
    "PROXY BROKER RESPONSE": Error(("PROXY", "BROKER", "RESPONSE"), "CMD SYNTAX"),
    "PROXY BROKER UNEXPECTED": Error(("PROXY", "BROKER", "UNEXPECTED"), "PONG"),
    "PROXY PROTOCOL BLOCKED notice": blocked(SPAM_FOR_A_MINUTE).within("PROXY", "PROTOCOL"),
}


def hello(name: str) -> bytes:
    """The blocks of the handshake; the key hash of client hellos is that of no relay of ours."""
    words = name.split()
    if words[0] == "server":
        minimum, maximum = map(int, words[1].split("-"))
        return ServerHello(VersionRange(minimum, maximum), SESSION_ID).encode()
    if words[0] == "service":
        if words[2] == "R":
            return ServiceResponse(eid(160)).encode()
        return ServiceResponse(error=Error(("HANDSHAKE", "BAD_SERVICE"))).encode()
    key = x25519(5).public if "key05" in words else None
    return ClientHello(int(words[1][1:]), KEY_HASH, key, "proxy" in words).encode()


def transmission(name: str) -> bytes:
    """SUB with each kind of authorization."""
    framing = Framing(int(name.split()[1][1:]), SESSION_ID)
    authorized = framing.authorized(CORR_ID, eid(50), b"SUB")
    if "service" in name:
        proof = ed25519(1).sign(KEY_HASH + authorized)
        return framing.transmission(authorized, proof, ed25519(4).sign(authorized))
    if "X25519" in name:
        key = BoxKey(x25519(9).exchange(x25519(5).public))
        return framing.transmission(authorized, authenticator(key, CORR_ID, authorized))
    if "noauth" in name:
        return framing.transmission(authorized, b"")
    return framing.transmission(authorized, ed25519(1).sign(authorized))


def body(name: str) -> bytes:
    message = seal_body(BODY_KEY, MSG_ID, encode_message_body(TIME, True, b"hello"))
    assert len(message) == 16122
    match name:
        case "MSG sha256":
            return hashlib.sha256(message).digest()
        case "MSG len,first32":
            return message[:32]
        case "QUOTA sha256":
            return hashlib.sha256(seal_body(BODY_KEY, MSG_ID, encode_quota_body(TIME))).digest()
    assert name == "NMSG meta"
    return seal_meta(BODY_KEY, CORR_ID, MSG_ID, TIME)


def error(words: str) -> bytes:
    given = SPECIAL_ERRORS.get(words, Error(tuple(words.split())))
    return m.Err(given).encode(18)


def of_version(table: dict[str, Any]) -> Callable[[str], bytes]:
    def encode(name: str) -> bytes:
        what, _, version = name.rpartition(" v")
        encoded: bytes = table[what].encode(int(version))
        return encoded

    return encode


def address(name: str) -> bytes:
    if name == "auth":
        return str(ServerAddress(Scheme.SMP, LOCATION, "pw")).encode()
    return str(ServerAddress(Scheme.SMP, LOCATION_BY_NUMBER)).encode()


def framed_ping(name: str) -> bytes:
    framing = Framing(18, SESSION_ID)
    return frame([framing.transmission(framing.authorized(CORR_ID, b"", b"PING"), b"")])


def chained_block(name: str) -> bytes:
    block = block_chains(SESSION_ID, bytes(range(0xC8, 0xE8)))[0].seal(b"PING")
    return hashlib.sha256(block).digest()


ENCODERS: dict[str, Callable[[str], bytes]] = {
    "cmd ": of_version(COMMANDS),
    "msg ": of_version(MESSAGES),
    "err ": error,
    "str server ": address,
    "signedKey ": lambda name: SignedKey.sign(x25519(5).public, ed25519(4)).encode(),
    "hello ": hello,
    "auth bytes SUB v": lambda name: Framing(int(name), SESSION_ID).authorized(
        CORR_ID, eid(50), b"SUB"
    ),
    "trn ": transmission,
    "batch of one": framed_ping,
    "body ": body,
    "sbc block": chained_block,
}

ENCODED = [
    vector for vector in load("smp_modules", "encode") if not vector["name"].startswith(LATER)
]
KEY_HASH = bytes.fromhex(next(v["value"] for v in ENCODED if v["name"] == "hello client v6 key05"))[
    3:
]
"""Of the reference's own test certificate, which is not among our files."""


def test_every_vector_has_an_encoder() -> None:
    for vector in ENCODED:
        assert sum(vector["name"].startswith(start) for start in ENCODERS) == 1, vector["name"]
    used = {name for vector in ENCODED for name in ENCODERS if vector["name"].startswith(name)}
    assert used == set(ENCODERS)


@pytest.mark.parametrize("vector", ENCODED, ids=name_of)
def test_encodings(vector: Vector) -> None:
    name = vector["name"]
    (start,) = (start for start in ENCODERS if name.startswith(start))
    assert ENCODERS[start](name.removeprefix(start)).hex() == vector["value"]


PARTIES = {"SIdleClient": None, "SRecipient": Role.MESSAGING, "SSender": Role.MESSAGING}
PROOFS = {
    (0, False): "none",
    (64, False): "sig",
    (64, True): "sig+svc",
    (114, False): "sig",
    (80, False): "authenticator",
}


@pytest.mark.parametrize("vector", load("smp_modules", "decode-server"), ids=name_of)
def test_contents_of_blocks(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    found = []
    for item in framing.read_commands(bytes.fromhex(vector["content"])):
        if not isinstance(item, Transmission):
            corr_size = item.header[0]
            corr_id, entity_id = item.header[1 : 1 + corr_size], item.header[2 + corr_size :]
            found.append(f"ERR corr={corr_id.hex()} ent={entity_id.hex()} {item.error}")
            continue
        party = {"PING": "SIdleClient", "LGET": "SSenderLink", "SEND": "SSender"}.get(
            item.command.tag.decode(), "SRecipient"
        )
        assert item.command.role is PARTIES.get(party, Role.MESSAGING)
        proof = PROOFS[len(item.authenticator), item.service_signature is not None]
        found.append(
            f"CMD corr={item.corr_id.hex()} ent={item.entity_id.hex()} auth={proof} "
            f"Cmd {party} authorized={item.authorized.hex()}"
        )
    assert found == vector["results"]


def test_service_fingerprint_is_in_what_the_queue_key_signs() -> None:
    """§9.1: a signature without the fingerprint is another one."""
    framing = Framing(18, SESSION_ID)
    authorized = framing.authorized(CORR_ID, eid(50), b"SUB")
    assert short(ed25519(1).sign(authorized)) not in transmission("SUB v18 service")
