"""Where a server spends its time: by py-spy from outside, or by cProfile inside of it."""

from __future__ import annotations

import pstats
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.running import say
from bench.server import Server

_RATE = 250
_LINES = 30


@dataclass
class Profile:
    """How to profile, and what came of it."""

    sampler: str | None = None
    statistics: Path | None = None
    twistd_options: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def report(self) -> None:
        """Prints it."""
        if self.statistics is not None and self.statistics.exists():
            statistics = pstats.Stats(str(self.statistics), stream=sys.stdout)
            statistics.sort_stats("tottime").print_stats(_LINES)
        for text in self.texts:
            print(text)


@contextmanager
def profiled_server(wanted: bool, foreign: bool) -> Iterator[Profile]:
    """The way in which this machine can profile.

    A server of our own can be started under cProfile, which slows it down, so that its
    figures are then worth little; others need py-spy.
    """
    profile = Profile()
    if wanted:
        beside = str(Path(sys.executable).parent)
        profile.sampler = shutil.which("py-spy") or shutil.which("py-spy", path=beside)
        if profile.sampler is None and foreign:
            say("there is no py-spy, without which only a server of our own can be profiled")
    with tempfile.TemporaryDirectory(prefix="bench-profile-") as directory:
        if wanted and profile.sampler is None and not foreign:
            say("there is no py-spy: the server runs under cProfile, which slows it down")
            profile.statistics = Path(directory) / "statistics"
            profile.twistd_options = [
                f"--profile={profile.statistics}",
                "--profiler=cprofile",
                "--savestats",
            ]
        yield profile


def sample(profile: Profile, server: Server, version: int, seconds: float) -> None:
    """Samples the server for so many seconds, if there is something to do it with."""
    if profile.sampler is None:
        return
    for pid in server.pids:
        with tempfile.NamedTemporaryFile(suffix=".txt") as file:
            arguments = [profile.sampler, "record", "-p", str(pid), "-o", file.name]
            arguments += ["-f", "raw", "-r", str(_RATE), "-d", str(max(1, round(seconds)))]
            done = subprocess.run(
                [*arguments, "--nonblocking"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                say(f"py-spy failed: {done.stderr.strip()}")
                continue
            profile.texts.append(_digest(Path(file.name).read_text(), version))


def _digest(text: str, version: int) -> str:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in text.splitlines():
        stack, _, number = line.rpartition(" ")
        names = [_without_line(frame) for frame in stack.split(";")]
        seen = int(number)
        total += seen
        own[names[-1]] += seen
        for name in set(names):
            within[name] += seen
    lines = [f"\nWhere the server is at v{version}, of {total} samples:", "  own    with callees"]
    for name, count in own.most_common(_LINES):
        share = 100 * count / max(total, 1)
        lines.append(f"{share:4.1f} %  {100 * within[name] / max(total, 1):5.1f} %  {name}")
    return "\n".join(lines)


def _without_line(frame: str) -> str:
    name, _, _ = frame.rpartition(":")
    return f"{name})" if name else frame
