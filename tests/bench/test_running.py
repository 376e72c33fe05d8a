"""How a benchmark is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from bench.running import ROOT

STARTING = """
import logging, os, signal
from bench.running import Process, ended_by_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
with ended_by_signals():
    print("ready", flush=True)
    while True:
        Process(["true"], os.sched_getaffinity(0)).popen.wait()
"""
DESTROYING = """
import signal, time
from bench.running import ended_by_signals
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow:
    def __del__(self):
        time.sleep(0.05)

with ended_by_signals():
    print("ready", flush=True)
    try:
        while True:
            Slow()
            time.sleep(0.043)
    finally:
        # What ends because of the signal is not interrupted once more.
        time.sleep(1)
        print("ended", flush=True)
"""
IN_REACTOR = """
import signal
from twisted.internet.defer import Deferred
from bench.reactor import run_in_reactor
from bench.running import ended_by_signals
signal.signal(signal.SIGINT, signal.default_int_handler)

async def wait():
    print("ready", flush=True)
    await Deferred()

with ended_by_signals():
    run_in_reactor(wait)
"""


@pytest.mark.parametrize(("by", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
@pytest.mark.parametrize(
    "program",
    [STARTING, DESTROYING, IN_REACTOR],
    ids=["starting", "destroying", "in the reactor"],
)
def test_a_program_ends_when_it_is_told(program: str, by: signal.Signals, status: int) -> None:
    """At any moment: what is raised in callbacks of a fork, or of a destructor, is lost."""
    for number in range(20 if program is STARTING else 3):
        with subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(number * 0.0007)
            process.send_signal(by)
            try:
                assert process.wait(10) == status
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert process.stdout.read() == ("ended\n" if program is DESTROYING else "")


RESULT = """
from twisted.internet.defer import succeed
from bench.reactor import run_in_reactor

async def five():
    return await succeed(5)

async def fail():
    raise LookupError(await five())

print(run_in_reactor({name}))
"""


@pytest.mark.parametrize(("name", "status"), [("five", 0), ("fail", 1)])
def test_what_a_coroutine_gives_in_the_reactor(name: str, status: int) -> None:
    program = RESULT.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    said = done.stderr if status else done.stdout
    assert said.splitlines()[-1] == ("LookupError: 5" if status else "5")
