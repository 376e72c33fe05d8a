"""Errors of SMP (docs/spec/smp-wire.md §12).

An error is a path of words, such as ``PROXY BROKER TRANSPORT VERSION``; a few
paths end in a text or, for ``BLOCKED``, in the reason and a notice. An error
inside ``PROXY PROTOCOL`` simply continues the path.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from txsimplex.encoding import ParseError, Reader, short
from txsimplex.smp.versions import BLOCKED_ERROR, CLIENT_NOTICES


class BlockingReason(Enum):
    """Why an operator blocked a queue."""

    SPAM = "spam"
    CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Notice:
    """What an operator asks of the client: no new contact addresses for `ttl` seconds.

    None means without end.
    """

    ttl: int | None


@dataclass(frozen=True, slots=True)
class BlockingInformation:
    """The argument of BLOCKED."""

    reason: BlockingReason
    notice: Notice | None = None

    def encode(self) -> bytes:
        """``reason=…[,notice=…]``."""
        text = f"reason={self.reason.value}"
        if self.notice is not None:
            content = {} if self.notice.ttl is None else {"ttl": self.notice.ttl}
            text += ",notice=" + json.dumps(content, separators=(",", ":"))
        return text.encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> BlockingInformation:
        """Reads what `encode` writes; unknown members of the notice are ignored."""
        head, comma, tail = data.partition(b",")
        if not head.startswith(b"reason="):
            raise ParseError("no reason")
        try:
            reason = BlockingReason(head[7:].decode("ascii"))
        except ValueError:
            raise ParseError("unknown reason") from None
        if not comma:
            return cls(reason)
        if not tail.startswith(b"notice="):
            raise ParseError("no notice")
        return cls(reason, _decode_notice(tail[7:]))


def _decode_notice(data: bytes) -> Notice:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise ParseError("notice is not JSON") from None
    if not isinstance(content, dict):
        raise ParseError("notice is not an object")
    ttl = content.get("ttl")
    if ttl is not None and (not isinstance(ttl, int) or isinstance(ttl, bool)):
        raise ParseError("ttl is not a number")
    return Notice(ttl)


@dataclass(frozen=True, slots=True)
class Error:
    """An error: its words, and the text or information that some of them end in."""

    path: tuple[str, ...]
    text: str | None = None
    blocked: BlockingInformation | None = None

    def encode(self, version: int | None = None) -> bytes:
        """The bytes behind ``ERR `` for a session of `version`; None rewrites nothing.

        Only a direct BLOCKED is rewritten for older versions (§12.1); NETWORK loses
        its detail on the wire (§12.3).
        """
        if self.path == ("BLOCKED",) and version is not None and self.blocked is not None:
            if version < BLOCKED_ERROR:
                return b"AUTH"
            if version < CLIENT_NOTICES:
                return b"BLOCKED " + BlockingInformation(self.blocked.reason).encode()
        head = " ".join(self._words()).encode("ascii")
        if self.blocked is not None:
            return head + b" " + self.blocked.encode()
        if self.text is None or "NETWORK" in self.path:
            return head
        if self.path[-1] == "STORE":
            return head + b" " + self.text.encode("utf-8")
        return head + b" " + short(self.text.encode("latin-1"))

    def __str__(self) -> str:
        """The text form, as people see it; NETWORK is without its detail here too."""
        words = [*self._words()]
        if self.blocked is not None:
            words.append(self.blocked.encode().decode("ascii"))
        elif self.text is not None and "NETWORK" not in self.path:
            words.append(self.text)
        return " ".join(words)

    def _words(self) -> tuple[str, ...]:
        if "NETWORK" not in self.path:
            return self.path
        return self.path[: self.path.index("NETWORK") + 1]

    def within(self, *path: str) -> Error:
        """This error as the argument of `path`, such as ``("PROXY", "PROTOCOL")``."""
        return Error(path + self.path, self.text, self.blocked)


class _Argument(Enum):
    NOTHING = 1
    REST_OF_TEXT = 2
    SHORT_TEXT = 3
    BLOCKING = 4
    ANY_ERROR = 5


_Grammar = dict[str, Any]

_NOTHING = _Argument.NOTHING
_HANDSHAKE: Final[_Grammar] = dict.fromkeys(
    ("PARSE", "IDENTITY", "BAD_AUTH", "BAD_SERVICE"), _NOTHING
)
_TRANSPORT: Final[_Grammar] = {
    **dict.fromkeys(("BLOCK", "VERSION", "LARGE_MSG", "SESSION", "NO_AUTH"), _NOTHING),
    "HANDSHAKE": _HANDSHAKE,
}
_NETWORK: Final[_Grammar] = {
    **dict.fromkeys(("CONNECT", "TLS", "SUBSCRIBE"), _Argument.SHORT_TEXT),
    **dict.fromkeys(("UNKNOWNCA", "FAILED", "TIMEOUT"), _NOTHING),
}
_BROKER: Final[_Grammar] = {
    **dict.fromkeys(("RESPONSE", "UNEXPECTED"), _Argument.SHORT_TEXT),
    **dict.fromkeys(("HOST", "NO_SERVICE", "TIMEOUT"), _NOTHING),
    "NETWORK": _NETWORK,
    "TRANSPORT": _TRANSPORT,
}
_COMMAND_WORDS = ("UNKNOWN", "SYNTAX", "PROHIBITED", "NO_AUTH", "HAS_AUTH", "NO_ENTITY")
_SIMPLE_WORDS = (
    "BLOCK",
    "SESSION",
    "AUTH",
    "SERVICE",
    "CRYPTO",
    "QUOTA",
    "EXPIRED",
    "NO_MSG",
    "LARGE_MSG",
    "INTERNAL",
    "DUPLICATE_",
)
_ERRORS: Final[_Grammar] = {
    **dict.fromkeys(_SIMPLE_WORDS, _NOTHING),
    "CMD": dict.fromkeys((*_COMMAND_WORDS, "NO_QUEUE"), _NOTHING),
    "PROXY": {
        "PROTOCOL": _Argument.ANY_ERROR,
        "BROKER": _BROKER,
        **dict.fromkeys(("BASIC_AUTH", "NO_SESSION"), _NOTHING),
    },
    "BLOCKED": _Argument.BLOCKING,
    "STORE": _Argument.REST_OF_TEXT,
}
_SYNONYMS = {"NO_QUEUE": "NO_ENTITY"}
_DEEPEST: Final = 64
"""Words in the longest path that is read; the reference nests without a bound."""


def decode_error(data: bytes) -> Error:
    """An error from the bytes behind ``ERR ``. Raises `ParseError`.

    ``PROXY BROKER NETWORK`` without detail is read as ``… NETWORK FAILED`` (§12.3).
    """
    return _decode(data, _ERRORS)


def decode_transport_error(data: bytes) -> Error:
    """A transport error alone, as in the service response of the handshake (§12.4)."""
    return _decode(data, _TRANSPORT)


def _decode(data: bytes, grammar: Any) -> Error:
    path: list[str] = []
    rest: bytes | None = data
    while isinstance(grammar, dict):
        if rest is None:
            raise ParseError("an incomplete error")
        word, space, tail = rest.partition(b" ")
        name = word.decode("latin-1")
        if name not in grammar or len(path) > _DEEPEST:
            raise ParseError("an unknown error")
        path.append(_SYNONYMS.get(name, name))
        grammar = grammar[name]
        rest = tail if space else None
        if grammar is _Argument.ANY_ERROR:
            grammar = _ERRORS
        elif grammar is _NETWORK and rest is None:
            path.append("FAILED")
            grammar = _NOTHING
    return _with_argument(tuple(path), grammar, rest)


def _with_argument(path: tuple[str, ...], argument: _Argument, rest: bytes | None) -> Error:
    if argument is _Argument.NOTHING:
        if rest is not None:
            raise ParseError("trailing bytes")
        return Error(path)
    if rest is None:
        raise ParseError("an argument is missing")
    if argument is _Argument.REST_OF_TEXT:
        return Error(path, _lenient_text(rest))
    if argument is _Argument.BLOCKING:
        return Error(path, blocked=BlockingInformation.decode(rest))
    reader = Reader(rest)
    text = reader.short().decode("latin-1")
    reader.finish()
    return Error(path, text)


def _lenient_text(data: bytes) -> str:
    """UTF-8, with ``?`` for each byte of invalid text as the reference reads it (§12.1)."""
    return data.decode("utf-8", _QUESTION_MARKS)


def _question_mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "?", error.start + 1


_QUESTION_MARKS: Final = "txsimplex.question_marks"
codecs.register_error(_QUESTION_MARKS, _question_mark)


BLOCK: Final = Error(("BLOCK",))
SESSION: Final = Error(("SESSION",))
AUTH: Final = Error(("AUTH",))
SERVICE: Final = Error(("SERVICE",))
CRYPTO: Final = Error(("CRYPTO",))
QUOTA: Final = Error(("QUOTA",))
NO_MSG: Final = Error(("NO_MSG",))
LARGE_MSG: Final = Error(("LARGE_MSG",))
INTERNAL: Final = Error(("INTERNAL",))
UNKNOWN: Final = Error(("CMD", "UNKNOWN"))
SYNTAX: Final = Error(("CMD", "SYNTAX"))
PROHIBITED: Final = Error(("CMD", "PROHIBITED"))
NO_AUTH: Final = Error(("CMD", "NO_AUTH"))
HAS_AUTH: Final = Error(("CMD", "HAS_AUTH"))
NO_ENTITY: Final = Error(("CMD", "NO_ENTITY"))
PROXY_BASIC_AUTH: Final = Error(("PROXY", "BASIC_AUTH"))
PROXY_NO_SESSION: Final = Error(("PROXY", "NO_SESSION"))


def blocked(information: BlockingInformation) -> Error:
    """BLOCKED with its argument."""
    return Error(("BLOCKED",), blocked=information)


def store_error(text: str) -> Error:
    """STORE with a text, which must say nothing of a queue or a user."""
    return Error(("STORE",), text)
