"""Reads the texts of addresses and links: numbers, base64url, query parameters.

The forms are those of docs/spec/smp-wire.md §13. Everything here raises
`ParseError`, and nothing else, for a text that is not of the form.
"""

from __future__ import annotations

import base64
import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from txsimplex.encoding import ParseError

_BASE64: Final = re.compile(r"[A-Za-z0-9_-]+=*")
_DIGITS: Final = re.compile(r"[0-9]+")
_QUERY: Final = re.compile(r"[^ \n]*")
_SEPARATORS: Final = re.compile(rb"[&;]")


def to_base64url(data: bytes, *, padded: bool = True) -> str:
    """base64url, with its padding or without."""
    text = base64.urlsafe_b64encode(data).decode("ascii")
    return text if padded else text.rstrip("=")


def from_base64url(text: str) -> bytes:
    """The bytes of base64url, which may be empty and of which the padding may be missing.

    Only what an encoder writes is read: bits left over in the last letter must
    be zero. Raises `ParseError`.
    """
    if text and _BASE64.fullmatch(text) is None:
        raise ParseError("not base64url")
    letters = text.rstrip("=")
    padding = -len(letters) % 4
    if padding == 3 or len(text) - len(letters) not in {0, padding}:
        raise ParseError("not base64url")
    data = base64.urlsafe_b64decode(letters + "=" * padding)
    if to_base64url(data, padded=False) != letters:
        raise ParseError("not base64url")
    return data


def decimal(text: str, largest: int) -> int:
    """A number of decimal digits, at most `largest`.

    The reference takes larger ones modulo the size of the type (§13); here that
    is a `ParseError`.
    """
    if _DIGITS.fullmatch(text) is None:
        raise ParseError("not a number")
    digits = text.lstrip("0")
    if len(digits) > len(str(largest)) or int(digits or "0") > largest:
        raise ParseError("a number too large")
    return int(digits or "0")


def percent_encoded(text: str) -> str:
    """`text` as UTF-8 with everything but letters, digits and ``-_.~`` percent-encoded."""
    return quote(text, safe="")


class Query:
    """The parameters behind the question mark of a link; the first of each name counts."""

    __slots__ = ("_values",)

    def __init__(self, text: str) -> None:
        self._values: dict[bytes, bytes] = {}
        for parameter in _SEPARATORS.split(text.encode("utf-8", "surrogatepass")):
            name, _, value = parameter.replace(b"+", b" ").partition(b"=")
            self._values.setdefault(unquote_to_bytes(name), unquote_to_bytes(value))

    def get(self, name: str) -> str | None:
        """The value of a parameter, None when it is not there. Raises `ParseError`."""
        value = self._values.get(name.encode("ascii"))
        if value is None:
            return None
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ParseError("not UTF-8") from None

    def required(self, name: str) -> str:
        """The value of a parameter that must be there. Raises `ParseError`."""
        value = self.get(name)
        if value is None:
            raise ParseError("a parameter is missing")
        return value


class Scanner:
    """Reads `text` from `position` on, piece by piece."""

    __slots__ = ("position", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What `pattern` matches here, which is then read, or None."""
        match = pattern.match(self.text, self.position)
        if match is not None:
            self.position = match.end()
        return match

    def skip(self, literal: str) -> bool:
        """Whether `literal` stands here; it is then read."""
        if not self.text.startswith(literal, self.position):
            return False
        self.position += len(literal)
        return True

    def expect(self, literal: str) -> None:
        """Reads `literal`, which must stand here."""
        if not self.skip(literal):
            raise ParseError("not the text expected")

    def base64url(self) -> bytes:
        """Reads base64url of at least one letter, with padding or without."""
        match = self.match(_BASE64)
        if match is None:
            raise ParseError("not base64url")
        return from_base64url(match[0])

    def query(self) -> Query:
        """Reads parameters up to a space, the end of the line or the end."""
        match = self.match(_QUERY)
        return Query(match[0] if match is not None else "")

    def finish(self) -> None:
        """Nothing may be left."""
        if self.position != len(self.text):
            raise ParseError("trailing text")
