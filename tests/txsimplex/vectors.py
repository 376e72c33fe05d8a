"""Loads the test vectors of `tests/vectors` (README.md there)."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

Vector = dict[str, Any]

_FOLDER = Path(__file__).parent.parent / "vectors"


@cache
def _vectors(name: str) -> tuple[Vector, ...]:
    with (_FOLDER / f"{name}.json").open(encoding="utf-8") as file:
        return tuple(json.load(file)["vectors"])


def load(name: str, *kinds: str) -> list[Vector]:
    """The vectors of `name`.json, in order; with `kinds` only those of these kinds.

    A kind of which the file has no vector is an error, so that no test runs on nothing.
    """
    vectors = _vectors(name)
    missing = set(kinds) - {vector["kind"] for vector in vectors}
    if missing:
        raise LookupError(f"{name}.json has no vectors of kind {', '.join(sorted(missing))}")
    return [vector for vector in vectors if not kinds or vector["kind"] in kinds]


def name_of(vector: Vector) -> str:
    """The name of a vector; for `ids` of `pytest.mark.parametrize`."""
    name: str = vector["name"]
    return name


def det(size: int, name: str) -> bytes:
    """The `size` bytes that the vectors derive from `name`: keys, nonces, ids."""
    blocks = (
        hashlib.sha512(f"vec:{name}:{number}".encode()).digest() for number in range(-(-size // 64))
    )
    return b"".join(blocks)[:size]


def value(given: str | Vector) -> bytes:
    """The bytes of a value that is whole: hexadecimal text or the form with "base64"."""
    if isinstance(given, str):
        return bytes.fromhex(given)
    data = base64.b64decode(given["base64"])
    assert same(given, data)
    return data


def same(given: str | Vector, data: bytes) -> bool:
    """Whether `data` is the value given: whole, or as length, SHA-256 and the ends of it."""
    if isinstance(given, str):
        return bytes.fromhex(given) == data
    return (
        given["len"] == len(data)
        and given["sha256"] == hashlib.sha256(data).hexdigest()
        and data[:256].hex().startswith(given.get("first256", ""))
        and data[-32:].hex().endswith(given.get("last32", ""))
    )
