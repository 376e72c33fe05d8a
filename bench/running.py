"""Processes that a benchmark starts or measures: where they run, what they use, how they end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
"""The checkout: benchmarks and the relay's plugin are found from there."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG: Final = 1
_END_TIME: Final = 5.0
_libc: Final = ctypes.CDLL(None, use_errno=True)


def cpu_seconds(pid: int) -> float:
    """User and system time that the process has used, of all its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_seconds_of_ended_children(pid: int) -> float:
    """The same of its children that have ended, and of theirs, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        # It may have ended since.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, thread.read_text().split())
    return found


def waited_seconds(pid: int) -> float:
    """How long the process was ready to run while others had its core, in seconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[1]) for each in threads) / 1e9


def resident_kib(pid: int) -> int:
    """Resident memory of the process in KiB, counted page by page."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Rss":
            return int(value.split()[0])
    raise ValueError("the kernel does not say what is resident")


def written_bytes(pid: int) -> int:
    """How many bytes the process has had written to disks, in whole pages of memory.

    What is written again after it was synced counts again; the file system's own
    journal does not. Newer kernels keep large files in large pieces, up to 2 MiB, and count a
    whole one when some bytes in its middle are written again.
    """
    return _input_output(pid, "write_bytes")


def given_to_write(pid: int) -> int:
    """How many bytes the process has written to files so far, by calls of the kernel.

    What is sent to sockets is not among them.
    """
    return _input_output(pid, "wchar")


def _input_output(pid: int, wanted: str) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value)
    raise ValueError("the kernel does not say what is written")


def open_files(pid: int) -> int:
    """How many file descriptors the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Cores:
    """Which cores the server and the generators of load run on.

    With two or more cores the server has the first to itself and the generators the
    others; otherwise, or if `pinned` is false, the kernel decides.
    """

    def __init__(self, pinned: bool = True) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.pinned = pinned and len(cores) > 1
        self.server = {cores[0]} if self.pinned else set(cores)
        self.generators = set(cores[1:]) if self.pinned else set(cores)

    def __str__(self) -> str:
        if not self.pinned:
            return "not pinned to cores"
        names = ", ".join(map(str, sorted(self.generators)))
        return f"server on core {min(self.server)}, generators on {names}"


class Process:
    """A process that does not outlive this one, however this one ends.

    `with_parent` is the signal that it gets when this one ends. `options` are those of
    `subprocess.Popen`; it runs in the checkout if they do not say otherwise.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cores: set[int],
        *,
        with_parent: signal.Signals = signal.SIGKILL,
        **options: Any,
    ) -> None:
        parent = os.getpid()

        def prepare() -> None:
            # After it has become another user, if it does: that takes the signal away.
            _libc.prctl(_PR_SET_PDEATHSIG, with_parent)
            if os.getppid() != parent:
                # It has ended before it could take this one with it.
                os._exit(1)
            os.sched_setaffinity(0, cores)

        with interruptions_held():
            self.popen = subprocess.Popen(
                arguments,
                preexec_fn=prepare,  # noqa: PLW1509  (no other thread holds a lock it needs)
                **{"cwd": ROOT, **options},
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self.popen.pid

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, in the end by force."""
        if self.popen.poll() is None:
            self.popen.send_signal(by)
            try:
                self.popen.wait(_END_TIME)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


def python(*arguments: str) -> list[str]:
    """A command line for the interpreter that runs this."""
    return [sys.executable, *arguments]


class _Interruption:
    """What SIGTERM or Ctrl-C has raised, and whether it has to wait."""

    held = 0
    raised: BaseException | None = None
    waiting: BaseException | None = None
    told: Callable[[], object] | None = None


_RAISED_AGAIN: Final = 0.2
"""Seconds until an interruption that was lost is raised once more."""


def _interrupt(interruption: BaseException) -> None:
    if _Interruption.held:
        _Interruption.waiting = interruption
        if _Interruption.told is not None:
            _Interruption.told()
        return
    _Interruption.raised = interruption
    signal.setitimer(signal.ITIMER_REAL, _RAISED_AGAIN, _RAISED_AGAIN)
    raise interruption


def _interrupt_again(number: int, frame: object) -> None:
    """Python ignores what is raised while it destroys an object, for one."""
    handled = sys.exception()
    while handled is not None:
        if handled is _Interruption.raised:
            # Things are being ended because of it.
            return
        handled = handled.__context__
    if _Interruption.raised is not None and not _Interruption.held:
        raise _Interruption.raised


@contextmanager
def interruptions_held(told: Callable[[], object] | None = None) -> Iterator[None]:
    """What SIGTERM and Ctrl-C raise comes at the end of the block, which `told` has end.

    For starting processes: what is raised in the callbacks that Python has for a fork is lost,
    and may be a lock that is not released. And for a reactor, which lets nothing through.
    """
    _Interruption.held += 1
    before, _Interruption.told = _Interruption.told, told or _Interruption.told
    try:
        yield
    finally:
        _Interruption.held -= 1
        _Interruption.told = before
    if not _Interruption.held and _Interruption.waiting is not None:
        interruption, _Interruption.waiting = _Interruption.waiting, None
        _interrupt(interruption)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block SIGTERM unwinds the program like Ctrl-C, so that what was started is ended."""
    signal.signal(signal.SIGALRM, _interrupt_again)
    signal.signal(signal.SIGTERM, lambda number, frame: _interrupt(SystemExit(128 + number)))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: _interrupt(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
