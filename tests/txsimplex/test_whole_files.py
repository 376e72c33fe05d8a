"""Files that are there whole or not at all: content, modes, owners."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from txsimplex.whole_files import PRIVATE, PUBLIC, create, make_directory, replace


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class TestDirectories:
    def test_made_for_the_owner_alone(self, tmp_path: Path) -> None:
        make_directory(tmp_path / "a/b")
        assert mode(tmp_path / "a/b") == 0o700

    def test_one_that_is_there_stays(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o750)
        make_directory(tmp_path)
        assert mode(tmp_path) == 0o750

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileExistsError):
            make_directory(tmp_path / "file")


class TestCreate:
    @pytest.mark.parametrize("umask", [0, 0o077])
    @pytest.mark.parametrize("wanted", [PRIVATE, PUBLIC])
    def test_content_and_mode(self, tmp_path: Path, umask: int, wanted: int) -> None:
        before = os.umask(umask)
        try:
            create(tmp_path / "key", b"secret", wanted)
        finally:
            os.umask(before)
        assert (tmp_path / "key").read_bytes() == b"secret"
        assert mode(tmp_path / "key") == wanted
        assert names(tmp_path) == ["key"]

    def test_never_overwrites(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(b"old")
        with pytest.raises(FileExistsError):
            create(tmp_path / "key", b"new", PRIVATE)
        assert (tmp_path / "key").read_bytes() == b"old"
        assert names(tmp_path) == ["key"]


class TestCreateWithoutHardLinks(TestCreate):
    """The same on FAT and its like, as sticks have it."""

    @pytest.fixture(autouse=True, params=[errno.EPERM, errno.EOPNOTSUPP])
    def no_links(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        number: int = request.param

        def link(source: object, target: object, **options: bool) -> None:
            # On a real one, too, the name that is taken is seen first.
            if os.path.lexists(str(target)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)

    def test_a_file_that_is_made_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the two attempts."""

        def link(source: object, target: object, **options: bool) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
        self.test_never_overwrites(tmp_path)

    def test_content_is_synced_and_so_is_the_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []

        def fsync(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

        monkeypatch.setattr(os, "fsync", fsync)
        create(tmp_path / "key", b"secret", PRIVATE)
        assert synced[-2:] == ["key", tmp_path.name]

    def test_a_failure_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").readlink().name == "key":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            create(tmp_path / "key", b"secret", PRIVATE)
        assert names(tmp_path) == []


def test_other_failures_to_link_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, target: object, **options: bool) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        create(tmp_path / "key", b"secret", PRIVATE)
    assert names(tmp_path) == []


class TestReplace:
    def test_a_new_file(self, tmp_path: Path) -> None:
        replace(tmp_path / "key", b"secret", PRIVATE)
        assert (tmp_path / "key").read_bytes() == b"secret"
        assert mode(tmp_path / "key") == 0o600

    @pytest.mark.parametrize(
        ("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o666, 0o640), (0o400, 0o600)]
    )
    def test_readers_of_the_group_stay_and_no_others(
        self, tmp_path: Path, before: int, after: int
    ) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"old")
        path.chmod(before)
        replace(path, b"new", PRIVATE)
        assert path.read_bytes() == b"new"
        assert mode(path) == after
        assert names(tmp_path) == ["key"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_owner_and_group_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"old")
        os.chown(path, 1234, 5678)
        replace(path, b"new", PRIVATE)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
        assert mode(path) & 0o007 == 0

    def test_a_failure_leaves_the_old_file_and_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace(path, b"new", PRIVATE)
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["key"]

    def test_content_is_synced_before_it_takes_the_name_and_the_directory_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"old")
        synced: list[tuple[str, bytes]] = []

        def fsync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            synced.append((target.name[:5], path.read_bytes()))

        monkeypatch.setattr(os, "fsync", fsync)
        replace(path, b"new", PRIVATE)
        assert synced == [(".key.", b"old"), (tmp_path.name[:5], b"new")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
class TestMadeByRoot:
    """In the directory of the relay's user, who has to read them."""

    OWNER = (1234, 5678)

    def owner(self, path: Path) -> tuple[int, int]:
        return path.stat().st_uid, path.stat().st_gid

    def test_it_is_the_owners_of_the_directory(self, tmp_path: Path) -> None:
        os.chown(tmp_path, *self.OWNER)
        make_directory(tmp_path / "a/b")
        create(tmp_path / "a/b/key", b"secret", PRIVATE)
        replace(tmp_path / "a/b/other", b"secret", PRIVATE)
        for name in ("a", "a/b", "a/b/key", "a/b/other"):
            assert self.owner(tmp_path / name) == self.OWNER
        assert mode(tmp_path / "a/b/key") == 0o600

    def test_what_is_there_stays_whose_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/key").touch()
        os.chown(tmp_path, *self.OWNER)
        make_directory(tmp_path / "a")
        replace(tmp_path / "a/key", b"secret", PRIVATE)
        assert self.owner(tmp_path / "a") == self.owner(tmp_path / "a/key") == (0, 0)

    def test_not_in_a_directory_that_is_for_all(self, tmp_path: Path) -> None:
        os.chown(tmp_path, *self.OWNER)
        tmp_path.chmod(0o1777)
        create(tmp_path / "key", b"secret", PRIVATE)
        assert self.owner(tmp_path / "key") == (0, 0)
