"""Arbitrary commands, messages and errors, and bytes that nearly are some."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from txsimplex.addresses import Host, RelayLocation, is_password
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp import commands, messages
from txsimplex.smp.commands import (
    Command,
    LinkData,
    LinkRequest,
    NotifierRequest,
    QueueMode,
    QueueRequest,
)
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Error, Notice
from txsimplex.smp.messages import Message, NotifierIds
from txsimplex.smp.versions import SMP_RANGE, VersionRange

VERSIONS = range(SMP_RANGE.minimum, SMP_RANGE.maximum + 1)

versions = st.sampled_from(VERSIONS)
ids = st.one_of(st.binary(min_size=24, max_size=24), st.binary(max_size=255))
contents = st.binary(max_size=300)


def _keys(*algorithms: Algorithm) -> st.SearchStrategy[PublicKey]:
    return st.one_of(
        [
            st.builds(
                PublicKey,
                st.just(algorithm),
                st.binary(min_size=algorithm.key_size, max_size=algorithm.key_size),
            )
            for algorithm in algorithms
        ]
    )


auth_keys = _keys(Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519)
dh_keys = _keys(Algorithm.X25519)
any_keys = _keys(*Algorithm)
passwords = st.lists(
    st.sampled_from([bytes((byte,)) for byte in range(256) if is_password(bytes((byte,)))]),
    max_size=30,
).map(b"".join)
hosts = st.one_of(
    st.sampled_from(["smp.example.com", "abc234.onion", "::1", "2001:db8::7", "a"]),
    st.ip_addresses().map(str),
).map(Host.parse)
locations = st.builds(
    RelayLocation,
    st.lists(hosts, min_size=1, max_size=4).map(tuple),
    st.integers(0, 65535).map(str) | st.just(""),
    ids,
)
link_data = st.builds(LinkData, contents, contents)
requests = st.one_of(
    st.builds(QueueRequest, st.sampled_from(QueueMode)),
    st.builds(QueueRequest, st.just(QueueMode.MESSAGING), st.builds(LinkRequest, ids, link_data)),
    st.builds(
        QueueRequest, st.just(QueueMode.CONTACT), st.builds(LinkRequest, ids, link_data, ids)
    ),
)
new_commands = st.builds(
    commands.New,
    auth_keys,
    dh_keys,
    st.none() | passwords,
    st.booleans(),
    st.none() | requests,
    st.none() | st.builds(NotifierRequest, auth_keys, dh_keys),
)
smp_commands: st.SearchStrategy[Command] = st.one_of(
    new_commands,
    st.sampled_from(
        [
            commands.Sub(),
            commands.Subs(),
            commands.Ldel(),
            commands.Ndel(),
            commands.Get(),
            commands.Off(),
            commands.Del(),
            commands.Que(),
            commands.Ping(),
            commands.Lget(),
            commands.Nsub(),
            commands.Nsubs(),
        ]
    ),
    st.builds(commands.Key, auth_keys),
    st.builds(commands.Rkey, st.lists(auth_keys, min_size=1, max_size=5)),
    st.builds(commands.Lset, ids, link_data),
    st.builds(commands.Nkey, auth_keys, dh_keys),
    st.builds(commands.Ack, ids),
    st.builds(commands.Skey, auth_keys),
    st.builds(commands.Send, st.booleans(), contents),
    st.builds(commands.Lkey, auth_keys),
    st.builds(commands.Prxy, locations, st.none() | passwords),
    st.builds(commands.Pfwd, st.integers(0, 65535), dh_keys, contents),
    st.builds(commands.Rfwd, contents),
)


def as_sent(command: Command, version: int) -> Command:
    """What is left of `command` after a session of `version` has carried it (§10.1)."""
    if not isinstance(command, commands.New):
        return command
    if version < 9:
        return replace(command, request=None, notifier=None)
    if version < 15:
        mode = QueueMode.CONTACT if command.request is None else command.request.mode
        return replace(command, request=QueueRequest(mode), notifier=None)
    if version < 17:
        return replace(command, notifier=None)
    return command


blocking = st.builds(
    BlockingInformation,
    st.sampled_from(BlockingReason),
    st.none() | st.builds(Notice, st.none() | st.integers(-(2**63), 2**63 - 1)),
)
latin1 = st.text(st.characters(max_codepoint=255), max_size=255)
_leaf_errors = st.one_of(
    st.sampled_from(
        [
            *("BLOCK", "SESSION", "AUTH", "SERVICE", "CRYPTO", "QUOTA", "EXPIRED", "NO_MSG"),
            *("LARGE_MSG", "INTERNAL", "DUPLICATE_", "CMD UNKNOWN", "CMD SYNTAX"),
            *("CMD PROHIBITED", "CMD NO_AUTH", "CMD HAS_AUTH", "CMD NO_ENTITY"),
            *("PROXY BASIC_AUTH", "PROXY NO_SESSION", "PROXY BROKER HOST"),
            *("PROXY BROKER NO_SERVICE", "PROXY BROKER TIMEOUT"),
            *("PROXY BROKER NETWORK UNKNOWNCA", "PROXY BROKER NETWORK FAILED"),
            *("PROXY BROKER NETWORK TIMEOUT", "PROXY BROKER TRANSPORT BLOCK"),
            *("PROXY BROKER TRANSPORT VERSION", "PROXY BROKER TRANSPORT LARGE_MSG"),
            *("PROXY BROKER TRANSPORT SESSION", "PROXY BROKER TRANSPORT NO_AUTH"),
            *("PROXY BROKER TRANSPORT HANDSHAKE PARSE",),
            *("PROXY BROKER TRANSPORT HANDSHAKE IDENTITY",),
            *("PROXY BROKER TRANSPORT HANDSHAKE BAD_AUTH",),
            *("PROXY BROKER TRANSPORT HANDSHAKE BAD_SERVICE",),
        ]
    ).map(lambda words: Error(tuple(words.split()))),
    st.builds(Error, st.just(("STORE",)), st.text(max_size=40)),
    st.builds(Error, st.just(("BLOCKED",)), st.none(), blocking),
    st.builds(
        Error,
        st.sampled_from(
            [
                ("PROXY", "BROKER", "RESPONSE"),
                ("PROXY", "BROKER", "UNEXPECTED"),
                ("PROXY", "BROKER", "NETWORK", "CONNECT"),
                ("PROXY", "BROKER", "NETWORK", "TLS"),
                ("PROXY", "BROKER", "NETWORK", "SUBSCRIBE"),
            ]
        ),
        latin1,
    ),
)
smp_errors = st.recursive(
    _leaf_errors, lambda inner: inner.map(lambda error: error.within("PROXY", "PROTOCOL"))
)


def error_as_sent(error: Error, version: int) -> Error:
    """What is left of `error` after a session of `version` has carried it (§12)."""
    if error.path == ("BLOCKED",) and error.blocked is not None:
        if version < 12:
            return Error(("AUTH",))
        if version < 18:
            return Error(("BLOCKED",), blocked=BlockingInformation(error.blocked.reason))
    if "NETWORK" in error.path:
        return Error((*error.path[: error.path.index("NETWORK") + 1], "FAILED"))
    return error


counts = st.integers(-(2**63), 2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
smp_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        messages.Ids,
        ids,
        ids,
        dh_keys,
        st.none() | st.sampled_from(QueueMode),
        st.none() | ids,
        st.none() | ids,
        st.none() | st.builds(NotifierIds, ids, dh_keys),
    ),
    st.builds(messages.Lnk, ids, link_data),
    st.builds(messages.Sok, st.none() | ids),
    st.builds(messages.Soks, counts),
    st.builds(messages.Msg, ids, contents),
    st.builds(messages.Nid, ids, dh_keys),
    st.builds(messages.Nmsg, st.binary(min_size=24, max_size=24), ids),
    st.builds(
        messages.Pkey,
        ids,
        st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
            lambda pair: VersionRange(min(pair), max(pair))
        ),
        st.lists(contents, min_size=1, max_size=4),
        contents,
    ),
    st.builds(messages.Rres, contents),
    st.builds(messages.Pres, contents),
    st.builds(messages.Ends, counts),
    st.sampled_from([messages.End(), messages.Deld(), messages.Ok(), messages.Pong()]),
    st.builds(messages.Info, st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
    st.builds(messages.Err, smp_errors),
)


def message_as_sent(message: Message, version: int) -> Message:
    """What is left of `message` after a session of `version` has carried it (§11)."""
    match message:
        case messages.Ids():
            return _ids_as_sent(message, version)
        case messages.Sok() if version < 16:
            return messages.Ok()
        case messages.Deld() if version < 10:
            return messages.End()
        case messages.Err():
            return messages.Err(error_as_sent(message.error, version))
    return message


def _ids_as_sent(ids: messages.Ids, version: int) -> messages.Ids:
    if version < 9:
        return replace(ids, mode=None, link_id=None, service_id=None, notifier=None)
    if version < 15:
        mode = QueueMode.MESSAGING if ids.mode is QueueMode.MESSAGING else QueueMode.CONTACT
        return replace(ids, mode=mode, link_id=None, service_id=None, notifier=None)
    if version < 16:
        return replace(ids, service_id=None, notifier=None)
    if version < 17:
        return replace(ids, notifier=None)
    return ids


@st.composite
def mutated(draw: st.DrawFn, encodings: st.SearchStrategy[bytes]) -> bytes:
    """Encodings with some bytes changed, cut out or put in."""
    data = bytearray(draw(encodings))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "cut", "insert", "end"])):
            case "change" if place < len(data):
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + draw(st.integers(1, 5))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=5))
            case "end":
                del data[place:]
    return bytes(data)
