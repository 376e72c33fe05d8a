"""Versions: smp-wire.md §6.2, §13, conformance 19 to 23.

The reference's texts of ranges are among the vectors of addresses, and tested there.
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from txsimplex.encoding import ParseError, Reader, whole
from txsimplex.smp.handshake import offered
from txsimplex.smp.versions import LEGACY_RANGE, PROXIED_RANGE, SMP_RANGE, VersionRange

ranges = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
    lambda pair: VersionRange(min(pair), max(pair))
)
"""Ranges of any versions."""
small_ranges = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
    lambda pair: VersionRange(min(pair), max(pair))
)
"""Ranges that often meet."""


def test_binary_form() -> None:
    """Conformance 19."""
    assert VersionRange(6, 18).encode() == b"\0\x06\0\x12"
    for minimum, maximum in ((1, 1), (1, 2)):
        given = VersionRange(minimum, maximum)
        assert whole(given.encode(), VersionRange.read) == given
    with pytest.raises(ParseError):
        VersionRange.read(Reader(b"\0\x02\0\x01"))
    for pair in ((2, 1), (-1, 0), (0, 65536)):
        with pytest.raises(ValueError, match="not a range"):
            VersionRange(*pair)


@pytest.mark.parametrize(
    ("one", "other", "version"),
    [((1, 2), (2, 3), 2), ((1, 3), (2, 4), 3), ((1, 2), (3, 4), None)],
)
def test_compatible(one: tuple[int, int], other: tuple[int, int], version: int | None) -> None:
    """Conformance 20."""
    first, second = VersionRange(*one), VersionRange(*other)
    assert first.compatible(second) == version
    assert second.compatible(first) == version


def test_intersection() -> None:
    """Conformance 21."""
    assert VersionRange(1, 3).intersection(VersionRange(2, 4)) == VersionRange(2, 3)
    assert VersionRange(1, 2).intersection(VersionRange(3, 4)) is None


def test_cap() -> None:
    """Conformance 22."""
    assert VersionRange(1, 3).cap(2) == VersionRange(1, 2)
    assert VersionRange(1, 3).cap(4) is None
    assert VersionRange(2, 3).cap(1) is None


def test_contains() -> None:
    """Conformance 23."""
    assert [version in VersionRange(2, 4) for version in range(1, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]


@given(small_ranges, small_ranges)
def test_ranges_are_sets(one: VersionRange, other: VersionRange) -> None:
    versions = {version for version in range(10) if version in one and version in other}
    both = one.intersection(other)
    assert both == other.intersection(one)
    assert {version for version in range(10) if both is not None and version in both} == versions
    assert one.compatible(other) == max(versions, default=None)


@given(ranges)
def test_round_trip(given: VersionRange) -> None:
    assert whole(given.encode(), VersionRange.read) == given
    assert VersionRange.parse(str(given)) == given


@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,6}(-[0-9]{0,6})?", fullmatch=True))
def test_arbitrary_texts(text: str) -> None:
    try:
        given = VersionRange.parse(text)
    except ParseError:
        return
    assert VersionRange.parse(str(given)) == given


@given(st.binary(max_size=6))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        given = whole(data, VersionRange.read)
    except ParseError:
        return
    assert given.encode() == data


def test_texts() -> None:
    """Conformance 33."""
    assert VersionRange.parse("1") == VersionRange.parse("1-1") == VersionRange(1, 1)
    assert str(VersionRange(1, 1)) == "1"
    assert str(VersionRange(1, 4)) == "1-4"
    for text in ("", "-", "1-", "-1", "2-1", "1-2-3", " 1", "1 ", "1\n", "a", "٣", "1" * 30):
        with pytest.raises(ParseError):
            VersionRange.parse(text)


@pytest.mark.parametrize(
    ("alpn", "versions"), [(None, LEGACY_RANGE), (b"smp/1", SMP_RANGE), (b"h2", SMP_RANGE)]
)
def test_what_is_offered(alpn: bytes | None, versions: VersionRange) -> None:
    """§4.1, conformance 75."""
    assert offered(SMP_RANGE, alpn) == versions


def test_ranges_of_the_specification() -> None:
    """§6.2, below the table."""
    assert VersionRange(6, 18) == SMP_RANGE
    assert VersionRange(8, 17) == PROXIED_RANGE
    assert offered(VersionRange(7, 18), None) is None
