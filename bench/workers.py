"""Generators of load: processes that are told what to do in lines of JSON.

The benchmark writes a line with a command to a worker's stdin and reads a line with
its result from its stdout. A worker ends when its stdin does.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from bench.running import Process, python

_ANSWER_TIME = 60.0
_LONGEST_LINE = 1 << 24


class WorkerFailedError(Exception):
    """A generator of load ended, said nothing in time, or could not do what it was told."""


# -- in the benchmark


class Worker:
    """One worker: the process of a module of this package that calls `obey`."""

    def __init__(self, module: str, cores: set[int], niceness: int = 0) -> None:
        arguments = python("-m", module)
        if niceness:
            arguments = ["nice", "-n", str(niceness), *arguments]
        self._process = Process(
            arguments, cores, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False, bufsize=0
        )
        self._input = b""

    def tell(self, command: str, **arguments: Any) -> None:
        """Sends a command; `answer` gives its result."""
        stream = self._process.popen.stdin
        assert stream is not None
        try:
            stream.write(json.dumps([command, arguments]).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerFailedError("a generator of load has ended") from None

    def answer(self, timeout: float = _ANSWER_TIME) -> Any:
        """The result of the command told first among those without answer."""
        deadline = time.monotonic() + timeout
        stream = self._process.popen.stdout
        assert stream is not None
        while b"\n" not in self._input:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise WorkerFailedError(f"a generator of load said nothing for {timeout:g} s")
            data = stream.read(1 << 16)
            if not data:
                raise WorkerFailedError("a generator of load has ended")
            self._input += data
        line, _, self._input = self._input.partition(b"\n")
        answer = json.loads(line)
        if "failure" in answer:
            raise WorkerFailedError(answer["failure"])
        return answer["result"]

    def ask(self, command: str, *, timeout: float = _ANSWER_TIME, **arguments: Any) -> Any:
        """Sends a command and waits for its result."""
        self.tell(command, **arguments)
        return self.answer(timeout)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def end(self) -> None:
        """Ends the process."""
        self._process.end()


class Workers:
    """Several workers that do the same at the same time; a context manager."""

    def __init__(self, module: str, count: int, cores: set[int], niceness: int = 0) -> None:
        self._stack = ExitStack()
        self.workers: list[Worker] = []
        with ExitStack() as stack:
            for _ in range(count):
                worker = Worker(module, cores, niceness)
                stack.callback(worker.end)
                self.workers.append(worker)
            self._stack = stack.pop_all()

    def ask(
        self,
        command: str,
        each: Sequence[Mapping[str, Any]] | None = None,
        *,
        timeout: float = _ANSWER_TIME,
    ) -> list[Any]:
        """Sends a command to all, with the arguments in `each`, and waits for all results."""
        for index, worker in enumerate(self.workers):
            worker.tell(command, **(each[index] if each else {}))
        return [worker.answer(timeout) for worker in self.workers]

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


# -- in the worker

Handler = Callable[..., Coroutine[Any, Any, Any]]


class _Commands(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = _LONGEST_LINE

    def __init__(self, handlers: Mapping[str, Handler], ended: Callable[[], object]) -> None:
        self._handlers = handlers
        self._ended = ended

    def lineReceived(self, line: bytes) -> None:
        command, arguments = json.loads(line)
        doing = Deferred.fromCoroutine(self._handlers[command](**arguments))
        doing.addCallbacks(self._done, self._failed)

    def _done(self, result: Any) -> None:
        self._answer({"result": result})

    def _failed(self, failure: Failure) -> None:
        text = f"{failure.value.__class__.__name__}: {failure.getErrorMessage()}"
        self._answer({"failure": text})

    def _answer(self, answer: Mapping[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended()


def obey(handlers: Mapping[str, Handler]) -> None:
    """Runs the reactor that is installed, and carries out commands from stdin until it ends."""
    from twisted.internet import reactor as installed

    reactor: Any = installed

    def end() -> None:
        if reactor.running:
            reactor.stop()

    StandardIO(_Commands(handlers, lambda: reactor.callWhenRunning(end)))
    reactor.run()


def sleep(seconds: float) -> Deferred[None]:
    """Fires after so many seconds of the reactor that is installed."""
    from twisted.internet import reactor

    return deferLater(reactor, seconds, lambda: None)
