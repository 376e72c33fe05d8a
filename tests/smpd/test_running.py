"""What can be asked of a relay that runs, and how smpctl shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from smpd import ctl
from smpd.ctl.status import duration
from smpd.running import PublishedOnion, RunningRelay
from tests.smpd.control_sockets import Answers
from torcfg.publishing import OnionPublisher

ONION = "a" * 56 + ".onion"


class State(Enum):
    PUBLISHED = "published"


@dataclass
class Status:
    state: State = State.PUBLISHED
    detail: str = ""


class Onion:
    """An onion service that is published."""

    address = ONION
    status = Status()
    status_since = 60.0
    clients: int | None = None

    def __init__(self) -> None:
        self.republished = 0

    async def republish(self) -> None:
        self.republished += 1
        self.clients = 2


class Connected:
    connections = 7
    connections_by_unix = 3


def answer(request: Any) -> Any:
    answers: list[Any] = []
    Deferred.fromCoroutine(request()).addCallback(answers.append)
    return answers[0]


def test_its_status() -> None:
    now = 10.0
    onion = Onion()
    relay = RunningRelay(2, Connected(), lambda: [onion], lambda: now)
    now = 100.5
    assert answer(relay.requests["status"]) == {
        "running": 90.5,
        "processes": 2,
        "connections": 7,
        "connections_by_unix": 3,
        "circuits": None,
        "onion": [
            {"host": ONION, "state": "published", "detail": "", "since": 40.5, "clients": None}
        ],
    }
    assert onion.republished == 0


def test_an_onion_service_in_torrc() -> None:
    relay = RunningRelay(1, Connected(), list, lambda: 0.0, in_torrc=ONION, circuits=lambda: 2)
    told = answer(relay.requests["status"])
    assert told["circuits"] == 2
    assert told["onion"] == [{"host": ONION, "state": "in torrc"}]
    assert answer(relay.requests["onion clients"]) == {"onion": []}


def test_clients_of_the_onion_service_are_told_to_tor() -> None:
    onions = [Onion(), Onion()]
    relay = RunningRelay(1, Connected(), lambda: onions, lambda: 100.0)
    told = answer(relay.requests["onion clients"])
    assert [each["clients"] for each in told["onion"]] == [2, 2]
    assert [each.republished for each in onions] == [1, 1]


def test_a_publisher_is_one_that_can_be_shown() -> None:
    assert all(hasattr(OnionPublisher, name) for name in ("republish", "clients"))
    assert isinstance(Onion(), PublishedOnion)
    assert not isinstance(Connected(), PublishedOnion)


# -- smpctl status


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3601, "1 h 0 min"),
        (90_000, "1 d 1 h"),
        (40 * 86_400, "40 d 0 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def smpctl(directory: Path, *arguments: str) -> int:
    return ctl.run(["--config", str(directory / "smpd.ini"), *arguments])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "smpd.ini").write_text("")
    return tmp_path


STATUS: dict[str, Any] = {
    "running": 3700.5,
    "processes": 2,
    "connections": 12,
    "connections_by_unix": 0,
    "circuits": None,
    "onion": [],
}


def test_what_it_prints(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = {"state": "away", "detail": "tor does not answer", "since": 61, "clients": 2}
    published = {"state": "published", "detail": "", "since": 5, "clients": None}
    onions = [{"host": ONION, **each} for each in (away, published)]
    with Answers(directory / "control.sock", {"answer": {**STATUS, "onion": onions}}) as answers:
        assert smpctl(directory, "status") == 0
    assert answers.requests == [{"request": "status"}]
    assert capsys.readouterr().out.splitlines() == [
        "Relay:         runs for 1 h 1 min",
        "Processes:     2",
        "Connections:   12",
        "  By socket:   0",
        f"Onion service: {ONION}",
        "  State:       away for 1 min 1 s (tor does not answer)",
        "  Clients:     2 by name",
        f"Onion service: {ONION}",
        "  State:       published for 5 s",
        "  Clients:     everybody",
    ]


def test_what_it_prints_of_a_service_in_torrc(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onion = {"host": ONION, "state": "in torrc"}
    told = {**STATUS, "connections_by_unix": 5, "circuits": 4, "onion": [onion]}
    with Answers(directory / "control.sock", {"answer": told}):
        assert smpctl(directory, "status") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Relay:         runs for 1 h 1 min",
        "Processes:     2",
        "Connections:   12",
        "  By socket:   5",
        "  Circuits:    4",
        f"Onion service: {ONION}",
        "  State:       in torrc",
    ]


def test_for_programs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Answers(directory / "control.sock", {"answer": STATUS}):
        assert smpctl(directory, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize(
    ("ini", "says"),
    [
        ("", "no relay runs that has its control socket at {}/control.sock"),
        (
            "[control]\nsocket = x/y.sock\n",
            "no relay runs that has its control socket at {}/x/y.sock",
        ),
        (
            f"[control]\nsocket = /{'x' * 107}\n",
            (
                f"there is no control socket, since /{'x' * 107} has more than 107 bytes: set "
                "socket in [control]"
            ),
        ),
        (
            "[control]\nsocket =\n",
            "the configuration sets no control socket ([control] socket)",
        ),
    ],
)
def test_no_relay_runs(
    directory: Path, ini: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "smpd.ini").write_text(ini)
    assert smpctl(directory, "status") == 1
    assert capsys.readouterr() == ("", f"smpctl: {says.format(directory)}\n")


@pytest.mark.parametrize("answer", [{}, {**STATUS, "onion": None}, {**STATUS, "onion": [5]}])
def test_a_relay_of_another_version(
    directory: Path, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Answers(directory / "control.sock", {"answer": answer}):
        assert smpctl(directory, "status") == 1
    says = "smpctl: the relay is of another version than smpctl: start it again\n"
    assert capsys.readouterr().err == says
