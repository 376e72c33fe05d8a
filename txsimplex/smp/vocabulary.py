"""Words of SMP by their tags: what commands and broker messages have in common
(docs/spec/smp-wire.md §9.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from txsimplex.encoding import ParseError, Reader
from txsimplex.smp import errors
from txsimplex.smp.errors import Error


@dataclass(slots=True)
class Word:
    """A tag and its parameters: the bytes behind the entity id of a transmission."""

    tag: ClassVar[bytes] = b""

    def encode(self, version: int) -> bytes:
        """The word for a session of `version`."""
        return self.tag

    @classmethod
    def read(cls, reader: Reader, version: int) -> Word:
        """The parameters behind the tag and its space, to the end of the input."""
        raise ParseError("trailing bytes")


_Word = TypeVar("_Word", bound=Word)
_Class = TypeVar("_Class", bound=type[Word])


class Vocabulary(Generic[_Word]):
    """The words that one side may say."""

    def __init__(self) -> None:
        self._classes: dict[bytes, type[Word]] = {}
        self._without_parameters: dict[bytes, Word] = {}

    def word(self, tag: bytes) -> Callable[[_Class], _Class]:
        """Gives a class its `tag` and puts it in."""

        def put(cls: _Class) -> _Class:
            cls.tag = tag
            self._classes[tag] = cls
            if cls.read.__func__ is Word.read.__func__:  # type: ignore[attr-defined]
                self._without_parameters[tag] = cls()
            return cls

        return put

    def read(self, data: bytes, position: int, end: int, version: int) -> _Word | Error:
        """The word in ``data[position:end]``, or the error about it (§9.2).

        Words without parameters are shared objects.
        """
        space = data.find(b" ", position, end)
        if space < 0:
            tag = data[position:end]
            word = self._without_parameters.get(tag)
            if word is not None:
                return word  # type: ignore[return-value]
            return errors.SYNTAX if tag in self._classes else errors.UNKNOWN
        cls = self._classes.get(data[position:space])
        if cls is None:
            return errors.UNKNOWN
        try:
            return cls.read(Reader(data, space + 1, end), version)  # type: ignore[return-value]
        except ParseError:
            return errors.SYNTAX
