"""Primitive encodings of the SimpleX protocols (docs/spec/smp-wire.md §1).

A decoder reads from a `Reader` and raises `ParseError`, and nothing else, for
bytes that are not of the form. Encoders return `bytes` and raise `ValueError`
for a value that the form cannot hold, since that is a mistake of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct, error as StructError
from typing import Final, TypeVar

T = TypeVar("T")

PAD_BYTE: Final = b"#"
MAX_PADDED: Final = 65533
"""Longest message that can be padded at all, in bytes (§1.1)."""

_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
_I64: Final = Struct(">q")


class ParseError(Exception):
    """Bytes that are not of the form asked for."""


class LargeMessageError(ValueError):
    """A message does not fit into the padded length asked for (§1.1)."""


class Reader:
    """Reads primitives one after the other from `data`, from `position` to `end`.

    Every method raises `ParseError` when the bytes left are too few or wrong;
    the position is then undefined.
    """

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = position
        self.end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return self.end - self.position

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        start = self.position
        stop = start + size
        if stop > self.end:
            raise ParseError("not enough bytes")
        self.position = stop
        return self.data[start:stop]

    def rest(self) -> bytes:
        """All bytes to the end (the form "Tail")."""
        start = self.position
        self.position = self.end
        return self.data[start : self.end]

    def u8(self) -> int:
        """One byte as a number."""
        if self.position >= self.end:
            raise ParseError("not enough bytes")
        value = self.data[self.position]
        self.position += 1
        return value

    def u16(self) -> int:
        """Two bytes, big-endian."""
        value: int = _U16.unpack(self.take(2))[0]
        return value

    def u32(self) -> int:
        """Four bytes, big-endian."""
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def i64(self) -> int:
        """Eight bytes, big-endian two's complement."""
        value: int = _I64.unpack(self.take(8))[0]
        return value

    def bool(self) -> bool:
        """``T`` or ``F``."""
        value = self.u8()
        if value == 0x54:
            return True
        if value == 0x46:
            return False
        raise ParseError("not a Bool")

    def short(self) -> bytes:
        """A string of 0 to 255 bytes behind its length."""
        position = self.position
        if position >= self.end:
            raise ParseError("not enough bytes")
        start = position + 1
        stop = start + self.data[position]
        if stop > self.end:
            raise ParseError("not enough bytes")
        self.position = stop
        return self.data[start:stop]

    def large(self) -> bytes:
        """A string of 0 to 65535 bytes behind its length."""
        return self.take(self.u16())

    def text(self) -> str:
        """A short string of UTF-8."""
        try:
            return self.short().decode("utf-8")
        except UnicodeDecodeError:
            raise ParseError("not UTF-8") from None

    def expect(self, literal: bytes) -> None:
        """Exactly the bytes `literal`."""
        if self.take(len(literal)) != literal:
            raise ParseError("not the bytes expected")

    def maybe(self, decode: Callable[[], T]) -> T | None:
        """``0``, or ``1`` and what `decode` reads."""
        tag = self.u8()
        if tag == 0x30:
            return None
        if tag == 0x31:
            return decode()
        raise ParseError("not a Maybe")

    def items(self, decode: Callable[[], T]) -> list[T]:
        """A count of 0 to 255 and as many items."""
        return [decode() for _ in range(self.u8())]

    def nonempty(self, decode: Callable[[], T]) -> list[T]:
        """A count of 1 to 255 and as many items."""
        count = self.u8()
        if count == 0:
            raise ParseError("an empty list")
        return [decode() for _ in range(count)]

    def finish(self) -> None:
        """Nothing may be left (whole-input parse)."""
        if self.position != self.end:
            raise ParseError("trailing bytes")


def whole(data: bytes, decode: Callable[[Reader], T]) -> T:
    """What `decode` reads from all of `data`.

    Raises `ParseError` also when bytes remain.
    """
    reader = Reader(data)
    value = decode(reader)
    reader.finish()
    return value


def u8(value: int) -> bytes:
    """One byte."""
    return bytes((value,))


def u16(value: int) -> bytes:
    """Two bytes, big-endian."""
    return _pack(_U16, value)


def u32(value: int) -> bytes:
    """Four bytes, big-endian."""
    return _pack(_U32, value)


def i64(value: int) -> bytes:
    """Eight bytes, big-endian two's complement."""
    return _pack(_I64, value)


def _pack(form: Struct, value: int) -> bytes:
    try:
        return form.pack(value)
    except StructError as error:
        raise ValueError(f"{value} does not fit: {error}") from None


def boolean(value: bool) -> bytes:
    """``T`` or ``F``."""
    return b"T" if value else b"F"


def short(value: bytes) -> bytes:
    """A string of at most 255 bytes behind its length.

    The reference truncates the length of a longer one modulo 256 (§1); here
    that is a `ValueError`.
    """
    return bytes((len(value),)) + value


def large(value: bytes) -> bytes:
    """A string of at most 65535 bytes behind its length."""
    return _pack(_U16, len(value)) + value


def text(value: str) -> bytes:
    """A short string of UTF-8."""
    return short(value.encode("utf-8"))


def maybe(value: T | None, encode: Callable[[T], bytes]) -> bytes:
    """``0``, or ``1`` and the encoded value."""
    return b"0" if value is None else b"1" + encode(value)


def nonempty(values: Iterable[T], encode: Callable[[T], bytes]) -> bytes:
    """A count of 1 to 255 and the encoded items."""
    items = [encode(value) for value in values]
    if not items:
        raise ValueError("an empty list")
    return bytes((len(items),)) + b"".join(items)


def pad(message: bytes, size: int) -> bytes:
    """`message` behind its length, filled with ``#`` to `size` bytes (§1.1).

    Raises `LargeMessageError` when it does not fit.
    """
    length = len(message)
    if length > MAX_PADDED or size < length + 2:
        raise LargeMessageError(f"{length} bytes do not fit into {size}")
    return (_U16.pack(length) + message).ljust(size, PAD_BYTE)


def unpad(padded: bytes | memoryview) -> bytes:
    """The message inside; the padding itself is not looked at (§1.1).

    Raises `ParseError` when the length is more than there is.
    """
    if len(padded) < 2:
        raise ParseError("no length")
    end = 2 + (padded[0] << 8 | padded[1])
    if len(padded) < end:
        raise ParseError("shorter than its length")
    return bytes(padded[2:end])
