"""Bodies in files: what is kept is there, what is wiped is nowhere, at every point of failure."""

from __future__ import annotations

import errno
import os
import resource
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from smpd.stores.bodies import ALIGNMENT, MessageBodies, Place
from smpd.stores.disk import has_data, hole_puncher

LARGEST = 64 << 20
SIZES = st.one_of(
    st.integers(0, 16_088),
    st.sampled_from([0, 1, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, 16_064, 16_088, 20_000]),
)


def body(size: int, number: int = 1) -> bytes:
    """A body without zeros, unlike those of other numbers."""
    return bytes((number + i) % 255 + 1 for i in range(251)) * (size // 251 + 1)


def bodies_of(sizes: Sequence[int]) -> list[bytes]:
    """Bodies of these sizes."""
    return [body(size, number)[:size] for number, size in enumerate(sizes)]


def new_bodies(
    directory: Path, largest_file: int = LARGEST, *, cannot: int | None = None
) -> MessageBodies:
    """Files that are new; `cannot` is why the file system makes no holes."""
    if cannot is None:
        return MessageBodies(directory, {}, {}, largest_file)
    number = cannot

    def punch(descriptor: int, offset: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    return MessageBodies(directory, {}, {}, largest_file, punch=punch)


def committed(bodies: MessageBodies, some: Sequence[bytes]) -> list[Place]:
    """Bodies whose commit succeeded."""
    places = bodies.append(some)
    bodies.sync()
    bodies.keep()
    return places


def names(directory: Path) -> list[str]:
    """The files there are."""
    return sorted(path.name for path in directory.iterdir())


def raw(directory: Path) -> bytes:
    """Everything that can be read in the files."""
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """A disk on which no file can grow over `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the files are to be."""
    return tmp_path / "messages"


# -- appending and reading


@given(st.lists(st.lists(SIZES, max_size=8), max_size=5))
def test_what_is_appended_is_read(batches: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path, "messages")
        bodies = new_bodies(directory, 100_000)
        known: dict[Place, bytes] = {}
        for sizes in batches:
            some = bodies_of(sizes)
            places = committed(bodies, some)
            assert [place.size for place in places] == sizes
            known.update(zip(places, some, strict=True))
        assert len(known) == sum(map(len, batches))
        for place, one in known.items():
            assert bodies.read(place) == one
        bodies.close()
        counts = Counter(place.file for place in known)
        files = {int(name): (directory / name).stat().st_size for name in names(directory)}
        again = MessageBodies(directory, files, counts)
        for place, one in known.items():
            assert again.read(place) == one
        again.close()


def test_each_body_starts_at_a_block_of_its_own(directory: Path) -> None:
    bodies = new_bodies(directory)
    places = bodies.append(bodies_of([1, ALIGNMENT, ALIGNMENT + 1, 0, 16_064]))
    assert [place.offset // ALIGNMENT for place in places] == [0, 1, 2, 4, 5]
    assert {place.offset % ALIGNMENT for place in places} == {0}
    bodies.sync()
    assert bodies.sizes() == {1: 9 * ALIGNMENT}
    assert (directory / "00000001").stat().st_size == 9 * ALIGNMENT
    bodies.close()


def test_places_are_given_one_after_the_other(directory: Path) -> None:
    bodies = new_bodies(directory)
    first = committed(bodies, bodies_of([10, 5000]))
    second = committed(bodies, bodies_of([7]))
    assert first == [Place(1, 0, 10), Place(1, 4096, 5000)]
    assert second == [Place(1, 12_288, 7)]
    bodies.close()


def test_nothing_appended_is_nothing(directory: Path) -> None:
    bodies = new_bodies(directory)
    assert bodies.append([]) == []
    bodies.sync()
    assert bodies.sizes() == {}
    assert names(directory) == []
    bodies.close()


def test_more_bodies_than_one_call_can_write(directory: Path) -> None:
    bodies = new_bodies(directory)
    some = bodies_of([5] * 2500)
    places = committed(bodies, some)
    assert [bodies.read(place) for place in places] == some
    bodies.close()


def test_many_bodies_are_written_by_one_call(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = os.pwritev

    def pwritev(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        calls.append(offset)
        return real(descriptor, pieces, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    bodies = new_bodies(directory)
    committed(bodies, bodies_of([16_064] * 100))
    assert calls == [0]
    bodies.close()


@given(st.lists(SIZES, min_size=1, max_size=6), st.integers(1, 9000))
def test_writes_that_are_cut_short_are_gone_on_with(sizes: list[int], most: int) -> None:
    def pwritev(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        return os.pwrite(descriptor, b"".join(pieces)[:most], offset)

    some = bodies_of(sizes)
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        bodies = new_bodies(Path(path, "messages"), 30_000)
        places = committed(bodies, some)
        assert [bodies.read(place) for place in places] == some
        bodies.close()


def test_a_full_file_is_followed_by_the_next(directory: Path) -> None:
    bodies = new_bodies(directory, 3 * ALIGNMENT)
    some = bodies_of([ALIGNMENT, 2 * ALIGNMENT, 1, 2 * ALIGNMENT, 1])
    places = bodies.append(some)
    bodies.sync()
    assert [place.file for place in places] == [1, 1, 2, 2, 3]
    assert places[-1].offset == 0
    assert bodies.sizes() == {1: 3 * ALIGNMENT, 2: 3 * ALIGNMENT, 3: ALIGNMENT}
    assert [bodies.read(place) for place in places] == some
    assert names(directory) == ["00000001", "00000002", "00000003"]
    bodies.close()


def test_a_body_larger_than_a_file_has_one_of_its_own(directory: Path) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    some = bodies_of([1, 3 * ALIGNMENT, 1])
    places = committed(bodies, some)
    assert [place.file for place in places] == [1, 2, 3]
    assert [bodies.read(place) for place in places] == some
    bodies.close()


def test_a_place_that_ends_behind_its_file_is_an_error(directory: Path) -> None:
    bodies = new_bodies(directory)
    committed(bodies, [b"one"])
    with pytest.raises(OSError, match="nput/output"):
        bodies.read(Place(1, 0, ALIGNMENT + 1))
    with pytest.raises(FileNotFoundError):
        bodies.read(Place(2, 0, 1))
    bodies.close()


def test_files_are_for_their_owner_alone(directory: Path) -> None:
    bodies = new_bodies(directory)
    committed(bodies, [b"one"])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "00000001").stat().st_mode) == 0o600
    bodies.close()


# -- syncing


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files and directories that are synced, as it happens."""
    done: list[str] = []

    def noting(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "fdatasync", noting)
    return done


def test_a_new_file_is_synced_and_then_its_entry(directory: Path, synced: list[str]) -> None:
    bodies = new_bodies(directory)
    assert synced == [directory.parent.name]
    synced.clear()
    bodies.append([b"one"])
    assert synced == []
    bodies.sync()
    assert synced == ["00000001", "messages"]
    bodies.sync()
    assert synced == ["00000001", "messages"]
    bodies.close()


def test_a_file_that_was_there_is_synced_alone(directory: Path, synced: list[str]) -> None:
    bodies = new_bodies(directory)
    committed(bodies, [b"one"])
    synced.clear()
    committed(bodies, [b"two", b"three"])
    assert synced == ["00000001"]
    bodies.close()


def test_every_file_of_a_batch_is_synced(directory: Path, synced: list[str]) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    committed(bodies, [b"one"])
    synced.clear()
    committed(bodies, [b"two", b"three"])
    assert synced == ["00000002", "00000003", "messages"]
    bodies.close()


def test_sizes_are_those_that_changed_since_the_last_commit(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    bodies.append([b"one"])
    assert bodies.sizes() == bodies.sizes() == {1: ALIGNMENT}
    bodies.keep()
    assert bodies.sizes() == {}
    bodies.append([b"two", b"three"])
    assert bodies.sizes() == {1: 2 * ALIGNMENT, 2: ALIGNMENT}
    bodies.keep()
    bodies.append([b"four"])
    assert bodies.sizes() == {2: 2 * ALIGNMENT}
    bodies.close()


def test_no_descriptors_are_left_open(directory: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    bodies = new_bodies(directory, ALIGNMENT)
    places = committed(bodies, bodies_of([1] * 50))
    for place in places:
        bodies.read(place)
    bodies.append(bodies_of([1] * 5))
    bodies.sync()
    bodies.undo()
    bodies.wipe(places[:20])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    bodies.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- commits that fail


def test_undo_takes_back_what_was_appended(directory: Path) -> None:
    bodies = new_bodies(directory, 4 * ALIGNMENT)
    (first,) = committed(bodies, [b"first"])
    places = bodies.append(bodies_of([ALIGNMENT] * 6))
    bodies.undo()
    assert bodies.sizes() == {}
    assert names(directory) == ["00000001"]
    assert (directory / "00000001").stat().st_size == ALIGNMENT
    for place in places:
        with pytest.raises(OSError, match=r"nput/output|No such file"):
            bodies.read(place)
    assert bodies.read(first) == b"first"
    (again,) = committed(bodies, [b"again"])
    assert (again.file, again.offset) == (1, ALIGNMENT)
    assert bodies.read(again) == b"again"
    bodies.close()


@pytest.mark.parametrize("crash_at", ["once", "after a full disk", "while appending again"])
def test_bodies_of_a_commit_in_doubt_stay(directory: Path, crash_at: str) -> None:
    """It may have succeeded although an error was reported."""
    bodies = new_bodies(directory, 4 * ALIGNMENT)
    (first,) = committed(bodies, [b"first"])
    some = bodies_of([ALIGNMENT] * 6)
    places = bodies.append(some)
    bodies.sync()
    sizes = bodies.sizes()
    bodies.undo()
    assert bodies.sizes() == {}
    if crash_at == "after a full disk":
        for limit in (1, 2 * ALIGNMENT + 1):
            with full_at(limit), pytest.raises(OSError, match="too large"):
                bodies.append(some)
            bodies.undo()
    elif crash_at == "while appending again":
        assert bodies.append(some) == places
    bodies.close()
    live = Counter(place.file for place in (first, *places))
    again = MessageBodies(directory, sizes, live, 4 * ALIGNMENT)
    assert [again.read(place) for place in (first, *places)] == [b"first", *some]
    again.close()


def test_a_commit_in_doubt_that_was_none_is_cut_off_at_the_start(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    committed(bodies, [b"first"])
    bodies.append([b"second", b"third"])
    bodies.sync()
    bodies.undo()
    bodies.close()
    assert names(directory) == ["00000001", "00000002"]
    again = MessageBodies(directory, {1: ALIGNMENT}, {1: 1}, 2 * ALIGNMENT)
    assert raw(directory).rstrip(b"\0") == b"first"
    assert again.append([b"second"]) == [Place(1, ALIGNMENT, 6)]
    again.close()


def test_a_commit_in_doubt_that_succeeds_in_the_end(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    some = [b"one", b"two", b"three"]
    places = bodies.append(some)
    for _ in range(3):
        bodies.sync()
        assert bodies.sizes() == {1: 2 * ALIGNMENT, 2: ALIGNMENT}
        bodies.undo()
        assert bodies.append(some) == places
    bodies.sync()
    bodies.keep()
    bodies.append([b"four"])
    bodies.undo()
    assert [bodies.read(place) for place in places] == some
    assert (directory / "00000002").stat().st_size == ALIGNMENT
    assert bodies.wipe(places[:2]) == [1]
    bodies.close()


def test_undo_does_not_take_back_what_was_committed(directory: Path) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    places = committed(bodies, [b"one", b"two"])
    bodies.undo()
    bodies.undo()
    assert [bodies.read(place) for place in places] == [b"one", b"two"]
    assert bodies.wipe(places[:1]) == [1]
    assert bodies.read(places[1]) == b"two"
    bodies.close()


def test_undo_forgets_bodies_of_the_count_too(directory: Path) -> None:
    """The file goes with the last one of those that were kept."""
    bodies = new_bodies(directory, 3 * ALIGNMENT)
    places = committed(bodies, [b"one"])
    bodies.append([b"two"])
    bodies.undo()
    committed(bodies, bodies_of([3 * ALIGNMENT]))
    assert bodies.wipe(places) == [1]
    bodies.close()


@pytest.mark.parametrize("synced_before", [False, True])
def test_a_new_file_after_undo(directory: Path, synced_before: bool) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    committed(bodies, [b"one"])
    bodies.append([b"two", b"three"])
    if synced_before:
        bodies.sync()
    bodies.undo()
    (place,) = committed(bodies, [b"four"])
    assert place == Place(2, 0, 4)
    assert bodies.read(place) == b"four"
    bodies.close()


@pytest.mark.parametrize("limit", [ALIGNMENT, ALIGNMENT + 10, 2 * ALIGNMENT, 5 * ALIGNMENT + 1])
def test_a_full_disk(directory: Path, limit: int) -> None:
    bodies = new_bodies(directory)
    (first,) = committed(bodies, [b"first"])
    some = bodies_of([16_064, 16_064, 16_064])
    with full_at(limit):
        for _ in range(3):
            with pytest.raises(OSError, match="too large"):
                bodies.append(some)
            bodies.undo()
            assert (directory / "00000001").stat().st_size == ALIGNMENT
            assert bodies.sizes() == {}
        assert bodies.read(first) == b"first"
    places = committed(bodies, some)
    assert places[0] == Place(1, ALIGNMENT, 16_064)
    assert [bodies.read(place) for place in places] == some
    bodies.close()


def test_a_disk_that_cannot_sync(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    committed(bodies, [b"first"])
    with monkeypatch.context() as patch:

        def fdatasync(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "fdatasync", fdatasync)
        bodies.append([b"second", b"third"])
        with pytest.raises(OSError, match="nput/output"):
            bodies.sync()
        bodies.undo()
    assert names(directory) == ["00000001"]
    places = committed(bodies, [b"second"])
    assert bodies.read(places[0]) == b"second"
    bodies.close()


def test_a_new_file_that_cannot_be_made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    (first,) = committed(bodies, [b"first"])
    with monkeypatch.context() as patch:
        real = os.open

        def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(path, flags, mode)

        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="No space"):
            bodies.append([b"second"])
        bodies.undo()
    assert bodies.read(first) == b"first"
    (place,) = committed(bodies, [b"second"])
    assert place == Place(2, 0, 6)
    bodies.close()


def test_undo_that_fails_can_be_called_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    (first,) = committed(bodies, [b"first"])
    bodies.append([b"second", b"third"])
    with monkeypatch.context() as patch:

        def truncate(path: Path, size: int) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(os, "truncate", truncate)
        with pytest.raises(OSError, match="Read-only"):
            bodies.undo()
        places = bodies.append([b"other"])
        with pytest.raises(OSError, match="Read-only"):
            bodies.undo()
    bodies.undo()
    assert names(directory) == ["00000001"]
    assert (directory / "00000001").stat().st_size == ALIGNMENT
    assert committed(bodies, [b"other"]) == places
    assert [bodies.read(place) for place in (first, *places)] == [b"first", b"other"]
    bodies.close()


# -- starting


def test_what_was_not_committed_is_cut_off(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    bodies.append([b"kept"])
    bodies.sync()
    sizes = bodies.sizes()
    bodies.keep()
    bodies.append([b"never", b"committed"])
    bodies.sync()
    bodies.close()
    assert b"never" in raw(directory)
    again = MessageBodies(directory, sizes, {1: 1}, 2 * ALIGNMENT)
    assert names(directory) == ["00000001"]
    assert raw(directory).rstrip(b"\0") == b"kept"
    assert committed(again, [b"next"]) == [Place(1, ALIGNMENT, 4)]
    again.close()


def test_files_that_are_not_named_are_removed_and_others_let_alone(directory: Path) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    places = committed(bodies, [b"one", b"two", b"three"])
    bodies.close()
    for name in ("notes", "1", "000000001", "00000007", "0000000x"):
        (directory / name).write_bytes(b"")
    again = MessageBodies(directory, {2: ALIGNMENT, 3: ALIGNMENT}, {2: 1, 3: 0}, ALIGNMENT)
    assert names(directory) == ["000000001", "00000002", "00000003", "0000000x", "1", "notes"]
    assert again.wipe([]) == []
    assert again.read(places[1]) == b"two"
    again.close()


def test_a_file_without_bodies_is_removed_at_the_start(directory: Path) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    committed(bodies, [b"one", b"two", b"three"])
    bodies.close()
    (directory / "00000001").write_bytes(bytes(ALIGNMENT))
    sizes = dict.fromkeys((1, 2, 3), ALIGNMENT)
    again = MessageBodies(directory, sizes, {2: 1}, ALIGNMENT)
    assert names(directory) == ["00000002", "00000003"]
    assert again.wipe([]) == [1]
    assert again.wipe([]) == []
    again.close()


def test_a_file_that_was_removed_before_a_crash_is_told_again(directory: Path) -> None:
    directory.mkdir()
    bodies = MessageBodies(directory, {4: ALIGNMENT, 9: ALIGNMENT}, {4: 0})
    (place,) = committed(bodies, [b"one"])
    assert place.file == 10
    assert sorted(bodies.wipe([])) == [4, 9]
    bodies.close()


@pytest.mark.parametrize("cannot", [None, errno.EOPNOTSUPP])
def test_a_wrong_count_takes_no_body_along(directory: Path, cannot: int | None) -> None:
    """Whoever counted wrong: a file goes when nothing is in it."""
    bodies = new_bodies(directory, 2 * ALIGNMENT, cannot=cannot)
    one, two, three, _ = committed(bodies, [b"one", b"two", b"three", b"four"])
    committed(bodies, [b"five"])
    assert bodies.wipe([one]) == []
    bodies.close()
    sizes = {1: 2 * ALIGNMENT, 2: 2 * ALIGNMENT, 3: ALIGNMENT}
    again = MessageBodies(directory, sizes, {1: 0, 2: 1, 3: 1}, 2 * ALIGNMENT)
    assert again.wipe([three]) == []
    assert again.read(two) == b"two"
    assert names(directory) == ["00000001", "00000002", "00000003"]
    assert again.wipe([two]) == [1]
    again.close()


@pytest.mark.parametrize("size", [None, 0, ALIGNMENT - 1])
def test_a_file_that_has_lost_bodies_is_refused(directory: Path, size: int | None) -> None:
    directory.mkdir()
    path = directory / "00000001"
    if size is not None:
        path.write_bytes(bytes(size))
    with pytest.raises(OSError, match="00000001"):
        MessageBodies(directory, {1: ALIGNMENT}, {1: 1})
    with pytest.raises(OSError, match="00000001"):
        MessageBodies(directory, {}, {1: 1})
    assert path.exists() is (size is not None)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        new_bodies(tmp_path / "file")


def test_what_is_noted_is_wiped_after_a_crash(directory: Path) -> None:
    """Before anything was wiped, and after files without bodies were removed."""
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    places = committed(bodies, bodies_of([9] * 6))
    sizes = dict.fromkeys((1, 2, 3), 2 * ALIGNMENT)
    noted, kept = [places[0], places[2], places[3]], [places[1], places[4], places[5]]
    live = Counter(place.file for place in places)
    bodies.close()
    for _ in range(2):
        again = MessageBodies(directory, sizes, live, 2 * ALIGNMENT, noted=noted)
        assert again.wipe(noted) == [2]
        assert names(directory) == ["00000001", "00000003"]
        assert [again.read(place) for place in kept] == [bodies_of([9] * 6)[n] for n in (1, 4, 5)]
        assert sum(map(bool, raw(directory))) == 27
        again.close()


# -- wiping


def test_a_hole_takes_no_room(directory: Path) -> None:
    bodies = new_bodies(directory)
    some = [body(16_384, number)[:16_384] for number in range(3)]
    places = committed(bodies, some)
    path = directory / "00000001"
    try:
        with path.open("r+b") as file:
            hole_puncher()(file.fileno(), 10 * 16_384, ALIGNMENT)
    except OSError as error:
        pytest.skip(f"the file system of {directory}: {error.strerror}")
    before = path.stat()
    assert bodies.wipe(places[1:2]) == []
    after = path.stat()
    assert (before.st_blocks - after.st_blocks) * 512 >= 16_384
    assert after.st_size == before.st_size
    assert path.read_bytes() == some[0] + bytes(16_384) + some[2]
    assert bodies.read(places[0]) == some[0]
    assert bodies.read(places[2]) == some[2]
    bodies.close()


@pytest.mark.parametrize("cannot", [None, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("wiped", [[0], [1], [4], [0, 1], [1, 2, 3], [3, 1], [0, 2, 4]])
def test_what_is_wiped_is_nowhere(directory: Path, wiped: list[int], cannot: int | None) -> None:
    bodies = new_bodies(directory, cannot=cannot)
    some = [bytes([65 + number]) * (4000 + number * 3000) for number in range(5)]
    places = committed(bodies, some)
    assert bodies.wipe(places[number] for number in wiped) == []
    content = raw(directory)
    assert set(content) - {0} == {65 + number for number in range(5) if number not in wiped}
    for number, place in enumerate(places):
        if number not in wiped:
            assert bodies.read(place) == some[number]
    bodies.close()


def test_large_places_are_overwritten_where_there_are_no_holes(directory: Path) -> None:
    bodies = new_bodies(directory, cannot=errno.EOPNOTSUPP)
    places = committed(bodies, [b"a" * 2_500_000, b"b"])
    assert bodies.wipe(places[:1]) == []
    assert raw(directory).strip(b"\0") == b"b"
    bodies.close()


def test_wiping_is_synced_before_it_returns(directory: Path, synced: list[str]) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    places = committed(bodies, [b"one", b"two", b"three"])
    synced.clear()
    bodies.wipe([places[0], places[2]])
    assert synced == ["00000001", "00000002"]
    bodies.close()


def test_a_disk_that_fails_while_wiping(directory: Path) -> None:
    broken = True
    real = hole_puncher()

    def punch(descriptor: int, offset: int, size: int) -> None:
        if broken and offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor, offset, size)

    bodies = MessageBodies(directory, {}, {}, 4 * ALIGNMENT, punch=punch)
    places = committed(bodies, bodies_of([5] * 5))
    with pytest.raises(OSError, match="nput/output"):
        bodies.wipe([places[0], places[2]])
    broken = False
    assert bodies.wipe([places[0], places[2]]) == []
    assert bodies.read(places[1])
    assert bodies.wipe([places[1], places[3]]) == [1]
    bodies.close()


def test_a_place_that_is_named_twice_counts_once(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    places = committed(bodies, [b"one", b"", b"three"])
    assert bodies.wipe([places[0], places[0]]) == []
    assert bodies.read(places[1]) == b""
    assert bodies.wipe([places[1]]) == [1]
    assert bodies.wipe([places[1]]) == []
    bodies.close()


def test_the_file_that_grows_stays_without_bodies(directory: Path) -> None:
    bodies = new_bodies(directory, 2 * ALIGNMENT)
    places = committed(bodies, [b"one", b"two"])
    assert bodies.wipe(places) == []
    assert names(directory) == ["00000001"]
    assert not raw(directory).strip(b"\0")
    committed(bodies, [b"three"])
    assert bodies.wipe([]) == [1]
    assert names(directory) == ["00000002"]
    bodies.close()


def test_a_file_that_undo_would_go_back_to_stays(directory: Path) -> None:
    bodies = new_bodies(directory, ALIGNMENT)
    places = committed(bodies, [b"one"])
    bodies.append([b"two"])
    assert bodies.wipe(places) == []
    bodies.undo()
    (place,) = committed(bodies, [b"three"])
    assert bodies.wipe([]) == [1]
    assert bodies.read(place) == b"three"
    bodies.close()


def test_holes_are_refused_with_a_reason(directory: Path) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            hole_puncher()(write, 0, ALIGNMENT)
    finally:
        os.close(read)
        os.close(write)


def test_a_machine_without_the_call(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __init__(self, name: None, use_errno: bool) -> None:
            pass

    monkeypatch.setattr("ctypes.CDLL", Nothing)
    bodies = new_bodies(directory)
    places = committed(bodies, [b"one", b"two"])
    bodies.wipe(places[:1])
    assert raw(directory).strip(b"\0") == b"two"
    bodies.close()


@pytest.mark.parametrize(
    ("holes", "data", "size", "expected"),
    [
        (0, b"", 0, False),
        (0, b"", 100, False),
        (0, bytes(3_000_000), 3_000_000, False),
        (0, bytes(2_999_999) + b"x", 3_000_000, True),
        (0, bytes(2_999_999) + b"x", 2_999_999, False),
        (8_000_000, b"", 8_000_000, False),
        (8_000_000, b"x", 8_000_001, True),
        (8_000_000, b"x", 8_000_000, False),
        (8_000_000, bytes(10), 9_000_000, False),
    ],
)
def test_whether_there_is_data(
    tmp_path: Path, holes: int, data: bytes, size: int, expected: bool
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(holes)
        file.seek(holes)
        file.write(data)
        file.flush()
        assert has_data(file.fileno(), size) is expected


# -- all of it together, with crashes


class Files(RuleBasedStateMachine):
    """A store that appends, commits, fails, wipes and crashes, against a dictionary."""

    places = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name, "messages")
        self.bodies = new_bodies(self.directory, 6 * ALIGNMENT)
        self.kept: dict[Place, bytes] = {}
        self.sizes: dict[int, int] = {}
        self.to_wipe: list[Place] = []
        self.made = 0
        self.in_doubt = False

    def _new(self, sizes: Sequence[int]) -> list[bytes]:
        self.made += 1
        return [body(size, self.made + number)[:size] for number, size in enumerate(sizes)]

    @rule(target=places, sizes=st.lists(st.integers(0, 9000), max_size=4))
    def commit(self, sizes: list[int]) -> object:
        """A commit that succeeds."""
        some = self._new(sizes)
        places = self.bodies.append(some)
        self.bodies.sync()
        self.sizes.update(self.bodies.sizes())
        self.bodies.keep()
        self.kept.update(zip(places, some, strict=True))
        return multiple(*places)

    @rule(sizes=st.lists(st.integers(0, 9000), max_size=4), synced=st.booleans())
    def fail(self, sizes: list[int], synced: bool) -> None:
        """A commit that fails."""
        self.bodies.append(self._new(sizes))
        if synced:
            self.bodies.sync()
            self.in_doubt = True
        self.bodies.undo()

    @rule(
        target=places,
        sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=4),
        tries=st.integers(0, 2),
        limit=st.integers(0, 6 * ALIGNMENT),
        crash=st.booleans(),
    )
    def doubt(self, sizes: list[int], tries: int, limit: int, crash: bool) -> object:
        """A commit that says that it failed, though it did not, and is tried again, or a crash."""
        some = self._new(sizes)
        places = self.bodies.append(some)
        self.bodies.sync()
        committed_sizes = self.bodies.sizes()
        self.bodies.undo()
        for _ in range(tries):
            with full_at(limit), suppress(OSError):
                assert self.bodies.append(some) == places
                self.bodies.sync()
            self.bodies.undo()
        self.sizes.update(committed_sizes)
        self.kept.update(zip(places, some, strict=True))
        if crash:
            self._start_again()
        else:
            assert self.bodies.append(some) == places
            self.bodies.sync()
            self.bodies.keep()
        return multiple(*places)

    @rule(sizes=st.lists(st.integers(3000, 9000), min_size=1, max_size=4))
    def full(self, sizes: list[int]) -> None:
        """A disk that is full somewhere in the midst of it."""
        with full_at(4 * ALIGNMENT), suppress(OSError):
            self.bodies.append(self._new(sizes))
        self.bodies.undo()

    @rule(place=consumes(places))
    def remove(self, place: Place) -> None:
        """The row goes; its place is noted."""
        del self.kept[place]
        self.to_wipe.append(place)

    @precondition(lambda self: self.to_wipe)
    @rule()
    def wipe(self) -> None:
        """What was noted is wiped, and the notes go."""
        for number in self.bodies.wipe(self.to_wipe):
            del self.sizes[number]
        self.to_wipe.clear()

    @rule(sizes=st.lists(st.integers(0, 9000), max_size=4), wiped=st.booleans())
    def crash(self, sizes: list[int], wiped: bool) -> None:
        """The end of the process, before a commit or before the notes go."""
        self.bodies.append(self._new(sizes))
        if wiped:
            self.bodies.undo()
            self.bodies.wipe(self.to_wipe)
        self._start_again()

    def _start_again(self) -> None:
        self.in_doubt = False
        self.bodies.close()
        live = Counter(place.file for place in (*self.kept, *self.to_wipe))
        self.bodies = MessageBodies(
            self.directory, self.sizes, live, 6 * ALIGNMENT, noted=self.to_wipe
        )

    @invariant()
    def everything_is_there(self) -> None:
        """What is kept can be read."""
        for place, one in self.kept.items():
            assert self.bodies.read(place) == one

    @invariant()
    def nothing_else_is_there(self) -> None:
        """The files hold what is kept and what waits to be wiped, and else nothing.

        But for what a commit in doubt has left behind, until the next start.
        """
        if self.in_doubt:
            return
        files = {path.name: path.read_bytes() for path in self.directory.iterdir()}
        assert len(files) <= len({place.file for place in (*self.kept, *self.to_wipe)}) + 1
        used = sum(len(content) - content.count(0) for content in files.values())
        most = sum(place.size for place in (*self.kept, *self.to_wipe))
        assert sum(map(len, self.kept.values())) <= used <= most

    def teardown(self) -> None:
        """Closes what was used."""
        self.bodies.close()
        self.temporary.cleanup()


Files.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestFiles = Files.TestCase
