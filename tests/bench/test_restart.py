"""The benchmark of starts finds the queues and messages that it put into the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from bench.filling import SqliteFiller, fill
from smpd.stores.group_commit import InPlace
from smpd.stores.sqlite import open_sqlite
from txsimplex.keys import Algorithm, PrivateKey

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.restart", "--quick", "--json", *arguments]


def test_what_was_filled_in(tmp_path: Path) -> None:
    key = PrivateKey.generate(Algorithm.ED25519, os.urandom)
    told: list[int] = []
    kept = fill(
        SqliteFiller(tmp_path / "store"),
        queues=6000,
        messages=40,
        body_size=100,
        keep=20,
        key=key,
        progress=told.append,
    )
    assert told == [5000]
    assert len({each.recipient_id for each in kept}) == len(kept) == 20
    clock = Clock()
    store = open_sqlite(
        tmp_path / "store",
        call_later=clock.callLater,
        call_from_thread=lambda call, *arguments: call(*arguments),
        worker=InPlace(),
    )
    try:
        assert store.queue_count() == 6000
        for each in kept:
            queue = store.by_recipient(each.recipient_id)
            assert queue is not None
            assert (queue.recipient_keys, queue.secret) == ([key.public], each.secret)
            head = store.head(queue)
            assert head is not None
            assert (head.body, len(each.body)) == (each.body, 100)
            assert store.message_count(queue) == 1
    finally:
        store.close()


@pytest.mark.slow
def test_figures() -> None:
    check_figures("sqlite")


@pytest.mark.slow
@pytest.mark.usefixtures("postgres_programs")
def test_figures_of_a_database() -> None:
    check_figures("postgres")


def check_figures(store: str) -> None:
    size = ("--queues", "6000", "--messages", "3000", "--repeat", "2")
    done = subprocess.run(
        command("--store", store, *size),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["queues"], result["messages"], result["faults"]) == (6000, 3000, [])
    assert 0 < result["start_seconds"] < 15
    assert 0 < result["start_seconds_after_kill"] < 15
    assert 0 < result["resident_mib"] <= result["after_1000_queues_mib"]


@pytest.mark.parametrize(
    "arguments", [("--messages", "1000"), ("--queues", "5000", "--messages", "6000")], ids=str
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--messages" in done.stderr
    assert "Traceback" not in done.stderr
