"""Commands, messages and errors from the fields that the vectors describe them with."""

from __future__ import annotations

from typing import Any

from tests.txsimplex.vectors import Vector, det
from txsimplex.addresses import Host, RelayLocation
from txsimplex.keys import PublicKey
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
from txsimplex.smp.versions import VersionRange

MODES = {None: None, "messaging": QueueMode.MESSAGING, "contact": QueueMode.CONTACT}
LARGE = {
    "LSET": commands.Lset(det(24, "eid/link"), LinkData(det(2048, "f"), det(13824, "u"))),
    "SEND": commands.Send(True, det(16048, "body")),
    "MSG": messages.Msg(det(24, "msgid"), det(16122, "encbody")),
}
"""What the vectors with a field "large" hold."""


def optional(given: str | None) -> bytes | None:
    return None if given is None else bytes.fromhex(given)


def key(given: str) -> PublicKey:
    return PublicKey.decode(bytes.fromhex(given))


def link_data(given: Vector) -> LinkData:
    return LinkData(bytes.fromhex(given["fixed"]), bytes.fromhex(given["user"]))


def password(given: str | None) -> bytes | None:
    return None if given is None else given.encode("latin-1")


def _request(given: Vector | None) -> QueueRequest | None:
    if given is None:
        return None
    mode = MODES[given["mode"]]
    assert mode is not None
    data = given["data"]
    if data is None:
        return QueueRequest(mode)
    link = LinkRequest(
        bytes.fromhex(data["sender_id"]),
        link_data(data["link_data"]),
        optional(data.get("link_id")),
    )
    return QueueRequest(mode, link)


def _new(fields: Vector) -> commands.New:
    notifier = fields["ntf_creds"]
    return commands.New(
        key(fields["rcv_auth_key"]),
        key(fields["rcv_dh_key"]),
        password(fields["basic_auth"]),
        fields["sub_mode"] == "subscribe",
        _request(fields["queue_req_data"]),
        notifier and NotifierRequest(key(notifier["key"]), key(notifier["dh_key"])),
    )


def _prxy(fields: Vector) -> commands.Prxy:
    server = fields["server"]
    location = RelayLocation(
        tuple(Host.parse(host) for host in server["hosts"]),
        server["port"],
        bytes.fromhex(server["key_hash"]),
    )
    return commands.Prxy(location, password(fields["basic_auth"]))


def command_of(fields: Vector) -> Command:
    """The command that `fields` describe."""
    name = fields["command"]
    if "large" in fields:
        large = LARGE[name]
        assert isinstance(large, Command)
        return large
    cls: Any = getattr(commands, name.capitalize())
    match name:
        case "NEW":
            return _new(fields)
        case "KEY" | "SKEY" | "LKEY":
            return cls(key(fields["key"]))  # type: ignore[no-any-return]
        case "RKEY":
            return commands.Rkey([key(given) for given in fields["keys"]])
        case "LSET":
            return commands.Lset(bytes.fromhex(fields["link_id"]), link_data(fields["data"]))
        case "NKEY":
            return commands.Nkey(key(fields["key"]), key(fields["dh_key"]))
        case "ACK":
            return commands.Ack(bytes.fromhex(fields["msg_id"]))
        case "SEND":
            return commands.Send(fields["notification"], bytes.fromhex(fields["body"]))
        case "PRXY":
            return _prxy(fields)
        case "PFWD":
            transmission = bytes.fromhex(fields["enc_transmission"])
            return commands.Pfwd(fields["version"], key(fields["key"]), transmission)
        case "RFWD":
            return commands.Rfwd(bytes.fromhex(fields["enc_fwd_transmission"]))
    assert set(fields) == {"command"}
    return cls()  # type: ignore[no-any-return]


def _ids(fields: Vector) -> messages.Ids:
    notifier = fields["ntf_creds"]
    return messages.Ids(
        bytes.fromhex(fields["rcv_id"]),
        bytes.fromhex(fields["snd_id"]),
        key(fields["dh_key"]),
        MODES[fields["queue_mode"]],
        optional(fields["link_id"]),
        optional(fields["service_id"]),
        notifier and NotifierIds(bytes.fromhex(notifier["notifier_id"]), key(notifier["dh_key"])),
    )


def _pkey(fields: Vector) -> messages.Pkey:
    return messages.Pkey(
        bytes.fromhex(fields["session_id"]),
        VersionRange(fields["min"], fields["max"]),
        [bytes.fromhex(certificate) for certificate in fields["cert_key"]["chain"]],
        bytes.fromhex(fields["cert_key"]["signed_key"]),
    )


def message_of(fields: Vector) -> Message:
    """The broker message that `fields` describe."""
    name = fields["message"]
    if "large" in fields:
        large = LARGE[name]
        assert isinstance(large, Message)
        return large
    cls: Any = getattr(messages, name.capitalize())
    match name:
        case "IDS":
            return _ids(fields)
        case "LNK":
            return messages.Lnk(bytes.fromhex(fields["sender_id"]), link_data(fields["data"]))
        case "SOK":
            return messages.Sok(optional(fields["service_id"]))
        case "SOKS" | "ENDS":
            return cls(fields["count"])  # type: ignore[no-any-return]
        case "MSG":
            return messages.Msg(bytes.fromhex(fields["msg_id"]), bytes.fromhex(fields["enc_body"]))
        case "NID":
            return messages.Nid(bytes.fromhex(fields["notifier_id"]), key(fields["dh_key"]))
        case "NMSG":
            return messages.Nmsg(bytes.fromhex(fields["nonce"]), bytes.fromhex(fields["enc_meta"]))
        case "PKEY":
            return _pkey(fields)
        case "RRES" | "PRES":
            return cls(bytes.fromhex(fields["enc"]))  # type: ignore[no-any-return]
        case "INFO":
            return messages.Info(fields["info"])
        case "ERR":
            return messages.Err(error_of(fields["error"]))
    assert set(fields) == {"message"}
    return cls()  # type: ignore[no-any-return]


def error_of(given: list[Any]) -> Error:
    """The error that nested lists such as ``["PROXY", ["BROKER", ["HOST"]]]`` describe."""
    name, *arguments = given
    if not arguments:
        return Error((name,))
    (argument,) = arguments
    if isinstance(argument, list):
        return error_of(argument).within(name)
    if isinstance(argument, dict):
        notice = argument["notice"]
        return Error(
            (name,),
            blocked=BlockingInformation(
                BlockingReason(argument["reason"]), None if notice is None else Notice(**notice)
            ),
        )
    if name in {"CMD", "HANDSHAKE"}:
        return Error((name, argument))
    return Error((name,), argument)
