"""INI text to frozen dataclasses, with every fault found and placed.

A settings class has one field per section, whose default factory is the
section's class; that class has one field per key, made by `setting`. So names,
types, defaults and what is allowed are said once.

The format is the plain part of INI: `[section]`, `key = value` on one line, and
comments on lines of their own that begin with `#` or `;`. Values are taken as
they stand: no quotes, no interpolation, no continued lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_SECTION = re.compile(r"\[\s*([^\]]*?)\s*\]")
_COMMENTED = re.compile(r"#([a-z_]+) =")
_SHOWN = 60
"""How many characters of a value a fault shows."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a configuration; as text it is one sentence.

    `line` counts from 1 and is None for the file as a whole, as are `section`
    and `key` where the fault is in none.
    """

    file: str
    line: int | None
    section: str | None
    key: str | None
    found: str
    allowed: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        if self.section is not None:
            place += f": [{self.section}]"
            if self.key is not None:
                place += f" {self.key}"
        return f"{place}: found {self.found}; allowed: {self.allowed}."


class ConfigurationError(Exception):
    """A configuration that cannot be used, with all of its faults in the order of the file."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class Refused(ValueError):
    """What a reader raises: what it found, and what is allowed where that is more exact.

    Several parts of one value may be refused at once; each becomes a fault.
    """

    def __init__(self, *parts: tuple[str, str | None]) -> None:
        super().__init__(*parts)
        self.parts = parts


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How the text of a key becomes a value.

    `read` takes the text and raises `Refused` when it is not what `allowed`
    says. The value of a `secret` is never shown in a fault.
    """

    read: Callable[[str], T]
    allowed: str
    secret: bool = False


def setting(kind: Kind[T], default: T) -> T:
    """The field of a key: its kind, and the value it has when the file does not set it."""
    return field(default=default, metadata={"kind": kind}, repr=not kind.secret)


def printable(text: str) -> str:
    """A user's text for a fault: nothing unprintable, at most `_SHOWN` characters."""
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quoted(text: str) -> str:
    """The same in quotes."""
    return f'"{printable(text)}"'


def on_off() -> Kind[bool]:
    """`on` or `off`."""
    return Kind(lambda text: one_of("on", "off").read(text) == "on", "on or off")


def one_of(*names: str) -> Kind[str]:
    """One of some words."""

    def read(text: str) -> str:
        if text not in names:
            raise Refused((quoted(text), None))
        return text

    return Kind(read, " or ".join(names))


def _read_path(text: str) -> Path:
    if not text or "\0" in text:
        raise Refused((quoted(text), None))
    return Path(text)


def path_of(what: str = "a file") -> Kind[Path]:
    """The path of something, which need not be there."""
    return Kind(_read_path, f"the path of {what}, from the configuration's own directory")


def whole_number(least: int, most: int) -> Kind[int]:
    """A number in decimal digits."""

    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        raise Refused((quoted(text), None))

    return Kind(read, f"a whole number from {least} to {most}")


def seconds(least: float, most: float) -> Kind[float]:
    """A duration in seconds, in decimal digits with or without a fraction."""

    def read(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text) and least <= float(text) <= most:
            return float(text)
        raise Refused((quoted(text), None))

    return Kind(read, f"seconds from {least:g} to {most:.0f}, such as 90 or 1.5")


def words(read_word: Callable[[str], T], allowed: str) -> Kind[tuple[T, ...]]:
    """Values with white space between them; `read_word` raises `ValueError` for a bad one."""

    def read(text: str) -> tuple[T, ...]:
        values: list[T] = []
        refused: list[tuple[str, str | None]] = []
        for word in text.split():
            try:
                values.append(read_word(word))
            except Refused as refusal:
                refused.extend(refusal.parts)
            except ValueError:
                refused.append((quoted(word), None))
        if refused:
            raise Refused(*refused)
        return tuple(values)

    return Kind(read, allowed)


def each_once(kind: Kind[tuple[T, ...]]) -> Kind[tuple[T, ...]]:
    """Several values of another kind, none of them twice."""

    def read(text: str) -> tuple[T, ...]:
        values = kind.read(text)
        for index, value in enumerate(values):
            if value in values[:index]:
                raise Refused((f"{quoted(str(value))} twice", "each once"))
        return values

    return Kind(read, kind.allowed)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Nothing at all, which is None, or what another kind reads."""
    return Kind(
        lambda text: kind.read(text) if text else None, f"nothing, or {kind.allowed}", kind.secret
    )


def kind_of(settings: type[Any], section: str, key: str) -> Kind[Any]:
    """The kind of a key, which is in no file here, such as that of an option with its meaning."""
    (found,) = (
        key_field.metadata["kind"]
        for section_field in fields(settings)
        if section_field.name == section
        for key_field in fields(section_class(section_field))
        if key_field.name == key
    )
    return cast("Kind[Any]", found)


def filled_in(template: str, values: Mapping[tuple[str, str], str]) -> str:
    """A documented file with some of its commented keys set.

    `values` maps section and key to the text of a value of one line. Raises
    `KeyError` for a key that `template` does not have as `#key =`.
    """
    left = dict(values)
    section = ""
    lines = template.split("\n")
    for number, line in enumerate(lines):
        if heading := _SECTION.fullmatch(line):
            section = heading[1]
        elif commented := _COMMENTED.match(line):
            value = left.pop((section, commented[1]), None)
            if value is not None:
                lines[number] = f"{commented[1]} = {value}"
    if left:
        raise KeyError(next(iter(left)))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line that matters: a section's heading, where `key` is None, or a key and its value."""

    number: int
    section: str | None
    key: str | None
    value: str


class Document:
    """A read file: the values of every section, where each stands, and the faults so far.

    `values` maps section and key to the value read; a key that the file does
    not set, or sets wrongly, is not in it.
    """

    def __init__(self, file: str, text: str, settings: type[Any]) -> None:
        self.file = file
        self.faults: list[Fault] = []
        self.values: dict[str, dict[str, Any]] = {}
        self._places: dict[tuple[str | None, str | None], int] = {}
        self._sections: dict[str, Mapping[str, Field[Any]]] = {
            section.name: {key.name: key for key in fields(section_class(section))}
            for section in fields(settings)
        }
        for line in self._lines(text):
            self._take(line)

    def line_of(self, section: str, *keys: str) -> int | None:
        """The last line that sets one of these keys of a section."""
        return max((self._places.get((section, key), 0) for key in keys), default=0) or None

    def refuse(self, section: str, key: str, found: str, allowed: str, *others: str) -> None:
        """Notes a fault of a value that is good by itself but not beside those of `others`."""
        line = self.line_of(section, key, *others)
        self.faults.append(Fault(self.file, line, section, key, found, allowed))

    def _lines(self, text: str) -> Iterator[_Line]:
        section: str | None = None
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            if heading := _SECTION.fullmatch(line):
                section = heading[1]
                yield _Line(number, section, None, "")
                continue
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                # Its text is not shown, since it may be a password on a line of its own.
                at = _Line(number, section, None, "")
                self._fault(at, "a line that is no setting", "[section] or key = value")
            else:
                yield _Line(number, section, key.strip(), value.strip())

    def _take(self, line: _Line) -> None:
        if line.section is None:
            self._fault(line, "a key before the first section", "[section] first")
            return
        section = self._sections.get(line.section)
        if section is None:
            if line.key is None:
                self._fault(line, "an unknown section", _names(line.section, self._sections))
        elif line.key is None:
            self._note_place(line, "section")
        elif line.key not in section:
            self._fault(line, "an unknown key", _names(line.key, section))
        elif self._note_place(line, "key"):
            self._read(line, line.section, line.key, section[line.key].metadata["kind"])

    def _note_place(self, line: _Line, what: str) -> bool:
        place = (line.section, line.key)
        first = self._places.setdefault(place, line.number)
        if first != line.number:
            self._fault(line, f"the {what} a second time", f"once, as in line {first}")
            return False
        return True

    def _read(self, line: _Line, section: str, key: str, kind: Kind[Any]) -> None:
        try:
            value = kind.read(line.value)
        except Refused as refusal:
            for found, allowed in refusal.parts:
                shown = "a value that is not shown" if kind.secret else found
                self._fault(line, shown, allowed or kind.allowed)
        else:
            self.values.setdefault(section, {})[key] = value

    def _fault(self, line: _Line, found: str, allowed: str) -> None:
        section, key = (
            None if name is None else printable(name) for name in (line.section, line.key)
        )
        self.faults.append(Fault(self.file, line.number, section, key, found, allowed))


def section_class(section: Field[Any]) -> type[Any]:
    """The class of a section, which is the default factory of its field."""
    return cast("type[Any]", section.default_factory)


def _names(found: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(found.lower().replace("-", "_"), known, 1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return ", ".join(known) + meant
