"""The relay's control socket."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from smpd import control
from smpd.control import ControlSocket, Request, RequestFailed, Requests
from smpd.ctl.errors import CommandError
from smpd.ctl.running import ask
from tests.coroutines import in_reactor, until


async def state() -> dict[str, Any]:
    return {"name": "ä", "numbers": [1, 2.5, None]}


async def impossible() -> dict[str, Any]:
    raise RequestFailed("that cannot be done")


async def broken() -> dict[str, Any]:
    raise ZeroDivisionError


REQUESTS = {"state": state, "impossible": impossible, "broken": broken}


def answer_to(line: bytes) -> Any:
    """What is answered, decoded."""
    answered: list[bytes] = []
    Deferred.fromCoroutine(Requests(REQUESTS).answer(line)).addCallback(answered.append)
    (answer,) = answered
    assert b"\n" not in answer
    return json.loads(answer)


def test_a_request_is_answered() -> None:
    assert answer_to(b'{"request": "state"}') == {
        "answer": {"name": "ä", "numbers": [1, 2.5, None]}
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "a request is a line of JSON"),
        (b"state", "a request is a line of JSON"),
        (b"\xff", "a request is a line of JSON"),
        (b"[" * 100_000, "a request is a line of JSON"),
        (b"[]", 'a request is an object with a "request"'),
        (b"{}", 'a request is an object with a "request"'),
        (b'{"request": ["state"]}', 'a request is an object with a "request"'),
        (b'{"request": "nonsense"}', "there is no request of that name"),
        (b'{"request": "impossible"}', "that cannot be done"),
    ],
)
def test_what_cannot_be_done_is_told(line: bytes, says: str) -> None:
    assert answer_to(line) == {"error": says}


@given(st.binary(max_size=200))
def test_whatever_comes_is_answered(line: bytes) -> None:
    assert list(answer_to(line)) == ["error"]


def test_a_request_that_fails_is_logged_and_the_relay_goes_on(
    logged_failures: list[Failure],
) -> None:
    assert answer_to(b'{"request": "broken"}') == {
        "error": "the relay has failed, its log says more"
    }
    (failure,) = logged_failures
    assert failure.check(ZeroDivisionError)
    logged_failures.clear()


# -- over a real socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@asynccontextmanager
async def running(
    path: Path, requests: Mapping[str, Request] = REQUESTS
) -> AsyncIterator[ControlSocket]:
    """A control socket that is listened on inside of the block."""
    from twisted.internet import reactor

    service = ControlSocket(reactor, path, requests)
    service.startService()
    try:
        yield service
    finally:
        stopped = service.stopService()
        if stopped is not None:
            await stopped
        assert not path.exists()


@in_reactor
async def test_it_is_for_its_owner_alone(path: Path) -> None:
    async with running(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert await deferToThread(ask, path, "state") == {"name": "ä", "numbers": [1, 2.5, None]}
        with pytest.raises(CommandError, match=r"^that cannot be done$"):
            await deferToThread(ask, path, "impossible")


def exchange(path: Path, sent: bytes, answers: int) -> list[Any]:
    """So many answers to what is sent at once, and what comes after the last one."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(sent)
        with client.makefile("rb") as file:
            return [json.loads(file.readline()) for _ in range(answers)]


@in_reactor
async def test_requests_on_one_connection_are_answered_in_their_order(path: Path) -> None:
    waiting: list[Deferred[None]] = []

    async def slow() -> dict[str, Any]:
        waiting.append(Deferred())
        await waiting[-1]
        return {"slow": len(waiting)}

    async with running(path, {"slow": slow, "state": state}):
        sent = b'{"request": "slow"}\n{"request": "state"}\r\n{"request": "slow"}\n'
        answers = deferToThread(exchange, path, sent, 3)
        await until(lambda: len(waiting) == 1)
        # Another connection does not wait for it.
        assert await deferToThread(ask, path, "state")
        assert len(waiting) == 1
        waiting[0].callback(None)
        await until(lambda: len(waiting) == 2)
        waiting[1].callback(None)
        first, second, third = await answers
        assert (first, third) == ({"answer": {"slow": 1}}, {"answer": {"slow": 2}})
        assert second == {"answer": await state()}


@in_reactor
async def test_who_does_not_wait_for_an_answer_does_no_harm(path: Path) -> None:
    waiting: Deferred[None] = Deferred()

    async def slow() -> dict[str, Any]:
        await waiting
        return {}

    async with running(path, {"slow": slow}) as service:
        await deferToThread(exchange, path, b'{"request": "slow"}\n', 0)
        await until(lambda: bool(service._factory.connections))
        waiting.callback(None)
        await until(lambda: not service._factory.connections)


@in_reactor
async def test_a_request_that_is_too_long(path: Path) -> None:
    async with running(path):
        (answer,) = await deferToThread(exchange, path, b"x" * 20_000, 1)
        assert answer == {"error": "a request has at most 16384 bytes"}


@in_reactor
async def test_a_socket_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    async with running(path):
        assert await deferToThread(ask, path, "state")


@in_reactor
async def test_another_relay_has_it(path: Path) -> None:
    async with running(path):
        from twisted.internet import reactor

        with pytest.raises(
            SystemExit, match=f"cannot listen on the control socket {path}: .*in use"
        ):
            ControlSocket(reactor, path, REQUESTS).startService()
        assert await deferToThread(ask, path, "state")


@in_reactor
async def test_a_path_that_is_too_long_ends_nothing(path: Path) -> None:
    """What was a good directory for a relay before there were control sockets still is."""
    async with running(path.with_name("x" * 108)) as service:
        assert service._port is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@in_reactor
async def test_a_directory_that_cannot_be_written_to_ends_nothing(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as /etc/smpd, where the store is elsewhere."""

    def refuse(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(control, "make_room", refuse)
    async with running(path) as service:
        assert service._port is None


@in_reactor
async def test_a_directory_that_is_not_there(path: Path) -> None:
    from twisted.internet import reactor

    place = path.parent / "missing/control.sock"
    with pytest.raises(SystemExit, match=f"the control socket {place}: .*No such file"):
        ControlSocket(reactor, place, REQUESTS).startService()


@in_reactor
async def test_connections_end_with_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        async with running(path) as service:
            client.connect(str(path))
            await until(lambda: bool(service._factory.connections))
        assert await deferToThread(client.recv, 1) == b""


# -- a relay that does not answer


def test_no_relay_runs(path: Path) -> None:
    with pytest.raises(CommandError, match=f"^no relay runs that .* socket at {path}$"):
        ask(path, "state")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(CommandError, match=f"^no relay runs that .* socket at {path}$"):
        ask(path, "state")


def test_something_else_is_there(path: Path) -> None:
    path.touch()
    with pytest.raises(CommandError, match=f"^no relay runs that .* socket at {path}$"):
        ask(path, "state")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the relay has closed its control socket"),
        (b"{}", "the relay has closed its control socket"),
        (b"{}\n", "the relay's answer cannot be read"),
        (b"[]\n", "the relay's answer cannot be read"),
        (b"nonsense\n", "the relay's answer cannot be read"),
        (b'{"answer": 5}\n', "the relay's answer cannot be read"),
        (b'{"error": "no"}\n', "no"),
        (None, "the relay does not answer"),
    ],
)
def test_answers_that_are_none(path: Path, answer: bytes | None, says: str) -> None:
    with socket.socket(socket.AF_UNIX) as relay:
        relay.bind(str(path))
        relay.listen()

        def give() -> None:
            if answer is not None:
                connection = relay.accept()[0]
                connection.recv(1000)
                connection.sendall(answer)
                connection.close()

        giving = threading.Thread(target=give)
        giving.start()
        with pytest.raises(CommandError, match=f"^{says}$"):
            ask(path, "state", timeout=10 if answer is not None else 0.2)
        giving.join()
