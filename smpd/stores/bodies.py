"""Bodies of messages in files that are only appended to (`docs/architecture.md`).

A body is as large as a block and lives for a moment, so it is kept apart from the
rows that name it, and written once. The order that makes it safe, of which a crash may
come between any two steps: `append`, `sync`, commit of the rows that name the places
together with `sizes`, `keep`; and when rows are removed: commit of their removal with
their places noted, `wipe`, and only then the notes may go. What lies beyond the
committed size of a file belongs to a commit that never was, and is cut off at the start.
A commit that fails after `sync` is in doubt: a database may report an error and have
committed nevertheless, or find the commit in its log after a crash. So its bodies stay
where they are until a commit succeeds; the same ones appended again go to the same places.

`read` may be called by any thread, everything else by one thread at a time.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from smpd.stores.disk import Punch, has_data, hole_puncher
from txsimplex.whole_files import sync_directory

ALIGNMENT: Final = 4096
"""Each body starts at a multiple of this, in bytes, so that the place of each can be
given back to the file system, which does that by its blocks."""

LARGEST_FILE: Final = 64 << 20
"""Bytes of a file, after which the next one begins."""

_MOST_PIECES: Final = 1024
"""How many pieces one call may write on Linux (IOV_MAX)."""
_DIRECTORY: Final = 0o700
_FILE: Final = 0o600
_ZEROS: Final = bytes(1 << 20)
_CANNOT_PUNCH: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


class Place(NamedTuple):
    """Where a body is: the number of its file, its offset there and its size in bytes."""

    file: int
    offset: int
    size: int


class MessageBodies:
    """The files of one store, in a directory of their own."""

    def __init__(
        self,
        directory: Path,
        sizes: Mapping[int, int],
        live: Mapping[int, int],
        largest_file: int = LARGEST_FILE,
        *,
        noted: Iterable[Place] = (),
        punch: Punch | None = None,
    ) -> None:
        """Opens the files, cuts off what was not committed, removes what is not named.

        `sizes` are the committed sizes of the files by their numbers. `live` counts the
        bodies of each that are not wiped yet; `noted` are the places of those among them
        that are to be wiped, with which `wipe` has to be called. A file that has no others
        may be gone. `punch` makes holes in another way than usual. Raises `OSError`,
        also when a file is missing or too short of which bodies are wanted.
        """
        self._directory = directory
        self._largest = largest_file
        self._punch = punch or hole_puncher()
        self._sizes: dict[int, int] = {}
        # The bodies of each file that are not wiped yet.
        self._live: Counter[int] = Counter()
        self._current: int | None = None
        # No number is used twice: rows of a file that is gone may still be there.
        self._last = self._kept_last = max(sizes, default=0)
        self._descriptors: dict[int, int] = {}
        self._unsynced: set[int] = set()
        self._entered = False
        self._gone: list[int] = []
        # What `undo` goes back to: of each file changed since, its size (None: it is new)
        # and how many bodies it was given.
        self._before: dict[int, int | None] = {}
        self._appended: Counter[int] = Counter()
        self._kept_current: int | None = None
        # Whether a commit may have been tried, and the sizes of those that are in doubt.
        self._synced = False
        self._doubtful: dict[int, int] = {}
        self._open(sizes, Counter(live), Counter(place.file for place in set(noted)))

    # -- starting

    def _open(self, sizes: Mapping[int, int], live: Counter[int], noted: Counter[int]) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=_DIRECTORY)
            sync_directory(self._directory.parent)
        wanted = live - noted
        for number in wanted:
            if number not in sizes:
                raise OSError(errno.EIO, "of unknown size", str(self._path(number)))
        for number, size in sizes.items():
            self._take(number, size, wanted=wanted[number] > 0)
        for number in _numbers(self._directory):
            if number not in self._sizes:
                self._path(number).unlink()
        self._live.update({number: live[number] for number in self._sizes})
        if self._last in self._sizes:
            self._current = self._kept_current = self._last

    def _take(self, number: int, size: int, *, wanted: bool) -> None:
        """Takes up a file that was committed; an empty one goes unless it is the last."""
        path = self._path(number)
        try:
            there = path.stat().st_size
        except FileNotFoundError:
            if wanted:
                raise
            there = -1
        if wanted and there < size:
            raise OSError(errno.EIO, "shorter than it was", str(path))
        self._sizes[number] = size
        if not wanted and (there < size or (number != self._last and self._is_empty(number))):
            del self._sizes[number]
            self._gone.append(number)
        elif there > size:
            os.truncate(path, size)

    # -- writing

    def append(self, bodies: Sequence[bytes]) -> list[Place]:
        """Writes bodies behind those that are there, and says where each of them is.

        They are safe after `sync`. Raises `OSError`, after which `undo` has to be called.
        """
        self._synced = False
        places: list[Place] = []
        pieces: list[bytes | memoryview] = []
        zeros = memoryview(_ZEROS)
        start = 0
        for body in bodies:
            size = len(body)
            room = _room(size)
            number = self._current
            if number is None or (self._sizes[number] and self._full(number, room)):
                if number is not None:
                    self._write(number, start, pieces)
                pieces = []
                number, start = self._begin_file(), 0
            offset = self._sizes[number]
            if number not in self._before:
                self._before[number] = offset
            if not pieces:
                start = offset
            pieces += (body, zeros[: room - size])
            self._sizes[number] = offset + room
            self._live[number] += 1
            self._appended[number] += 1
            places.append(Place(number, offset, size))
        if self._current is not None:
            self._write(self._current, start, pieces)
        return places

    def _full(self, number: int, room: int) -> bool:
        return self._sizes[number] + room > self._largest

    def _begin_file(self) -> int:
        number = self._last + 1
        # One of a commit in doubt may be there.
        flags = os.O_WRONLY | os.O_CREAT
        self._descriptors[number] = os.open(self._path(number), flags, _FILE)
        self._last = number
        self._entered = True
        self._before[number] = None
        self._unsynced.add(number)
        self._sizes[number] = 0
        self._current = number
        return number

    def _write(self, number: int, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Writes all of `pieces`, with one call where that is possible."""
        if not pieces:
            return
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            descriptor = self._descriptors[number] = os.open(self._path(number), os.O_WRONLY)
        self._unsynced.add(number)
        done = 0
        while done < len(pieces):
            some = list(pieces[done : done + _MOST_PIECES])
            done += len(some)
            while some:
                written = os.pwritev(descriptor, some, offset)
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                offset += written
                some = _rest(some, written)

    def sync(self) -> None:
        """Makes what was appended safe. Raises `OSError`, after which `undo` has to be called."""
        for number in sorted(self._unsynced):
            descriptor = self._descriptors[number]
            os.fdatasync(descriptor)
            self._unsynced.discard(number)
            if number != self._current:
                os.close(self._descriptors.pop(number))
        if self._entered:
            sync_directory(self._directory)
            self._entered = False
        self._synced = True

    def sizes(self) -> dict[int, int]:
        """The sizes of the files that changed since `keep`, to be committed with the rows."""
        return {n: self._sizes[n] for n in self._before if n in self._sizes}

    def keep(self) -> None:
        """The commit is done: what was appended stays."""
        self._before.clear()
        self._appended.clear()
        self._doubtful.clear()
        self._synced = False
        self._kept_current, self._kept_last = self._current, self._last

    def undo(self) -> None:
        """The commit failed, or it did not come to one: takes back all since `keep`.

        What is in no commit, not even in one in doubt, is cut off. Raises `OSError` when that
        cannot be done now; bodies may be appended nevertheless, and `undo` called again.
        """
        if self._synced:
            for number, end in self.sizes().items():
                self._doubtful[number] = max(end, self._doubtful.get(number, 0))
            self._synced = False
        self._live.subtract(self._appended)
        self._appended.clear()
        self._current, self._last = self._kept_current, self._kept_last
        self._unsynced.clear()
        for number, size in self._before.items():
            if size is None:
                self._sizes.pop(number, None)
                self._live.pop(number, None)
            else:
                self._sizes[number] = size
        self.close()
        for number, size in list(self._before.items()):
            self._cut(number, self._doubtful.get(number, size))
            del self._before[number]

    def _cut(self, number: int, size: int | None) -> None:
        path = self._path(number)
        if size is None:
            path.unlink(missing_ok=True)
        elif path.stat().st_size > size:
            os.truncate(path, size)

    # -- reading

    def read(self, place: Place) -> bytes:
        """The body at a place. Raises `OSError`.

        Opens its file each time: any number of files may wait, for months, and other
        things need descriptors too.
        """
        descriptor = os.open(self._path(place.file), os.O_RDONLY)
        try:
            body = os.pread(descriptor, place.size, place.offset)
        finally:
            os.close(descriptor)
        if len(body) != place.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return body

    # -- wiping

    def wipe(self, places: Iterable[Place]) -> list[int]:
        """Removes bodies from the disk, and names the files that are gone since the last call.

        Places in files that are gone are of no account.

        Has synced what it did when it returns, so it is better called now and then with
        many places than often with few. Raises `OSError`, after which it may be called
        with the same places again.
        """
        by_file: defaultdict[int, set[Place]] = defaultdict(set)
        for place in places:
            if place.file in self._sizes:
                by_file[place.file].add(place)
        for number, some in by_file.items():
            self._wipe_in(number, some)
        for number, some in by_file.items():
            self._live[number] -= len(some)
        for number in list(self._sizes):
            if self._live[number] <= 0 and not self._stays(number) and self._is_empty(number):
                self._path(number).unlink(missing_ok=True)
                del self._sizes[number]
                self._live.pop(number, None)
                self._gone.append(number)
        gone, self._gone = self._gone, []
        return gone

    def _stays(self, number: int) -> bool:
        """Whether a file has to stay even without bodies: it will get more, or may be undone."""
        return number in (self._current, self._kept_current) or number in self._before

    def _is_empty(self, number: int) -> bool:
        """Whether all of a file is wiped: what no count can be wrong about."""
        descriptor = os.open(self._path(number), os.O_RDONLY)
        try:
            return not has_data(descriptor, self._sizes[number])
        finally:
            os.close(descriptor)

    def _wipe_in(self, number: int, places: Iterable[Place]) -> None:
        descriptor = os.open(self._path(number), os.O_RDWR)
        try:
            for start, end in _joined(places):
                self._clear(descriptor, start, end - start)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _clear(self, descriptor: int, offset: int, size: int) -> None:
        try:
            self._punch(descriptor, offset, size)
        except OSError as error:
            if error.errno not in _CANNOT_PUNCH:
                raise
            _overwrite(descriptor, offset, size)

    # -- ending, and names

    def close(self) -> None:
        """Closes what is open."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}"


def _room(size: int) -> int:
    """What a body takes in its file. An empty one takes a block too: no two are at one place."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


def _rest(pieces: Sequence[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """What is left to write of `pieces` of which the first `written` bytes are."""
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


def _joined(places: Iterable[Place]) -> Iterator[tuple[int, int]]:
    """Start and end of the stretches that the places of one file take, neighbours joined."""
    start = end = 0
    for place in sorted(places):
        if place.offset > end:
            if end > start:
                yield start, end
            start = place.offset
        end = max(end, place.offset + _room(place.size))
    if end > start:
        yield start, end


def _overwrite(descriptor: int, offset: int, size: int) -> None:
    end = offset + size
    while offset < end:
        offset += os.pwrite(descriptor, _ZEROS[: end - offset], offset)


def _numbers(directory: Path) -> Iterator[int]:
    """The numbers of the files of bodies in a directory; what else is there is let alone."""
    for path in list(directory.iterdir()):
        name = path.name
        if name.isascii() and name.isdigit() and f"{int(name):08d}" == name:
            yield int(name)
