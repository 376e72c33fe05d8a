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
from bench.running import Process, exit_on_sigterm
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
exit_on_sigterm()
print("ready", flush=True)
while True:
    Process(["true"], os.sched_getaffinity(0)).popen.wait()
"""


@pytest.mark.parametrize(("by", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_program_that_starts_processes_ends_when_it_is_told(
    by: signal.Signals, status: int
) -> None:
    """At any moment: what is raised in callbacks of a fork is lost."""
    for number in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", STARTING],
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
