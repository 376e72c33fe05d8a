"""The reactor without a logging context around each event."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(program: str) -> str:
    """What a process prints that runs ``program``."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PAIR = """
import sys
from twisted.python import log
from txsimplex import fast_reactor
fast_reactor.install()
from twisted.internet import reactor, protocol, endpoints
logged = []
log.addObserver(lambda event: logged.append(event) if event["isError"] else None)

class Server(protocol.Protocol):
    def dataReceived(self, data):
        if data == b"fail":
            raise RuntimeError("a fault")
        self.transport.write(data)
    def connectionLost(self, reason):
        print("server lost", reason.type.__name__)
        if fail_at_the_end:
            raise RuntimeError("another fault")

class Client(protocol.Protocol):
    def __init__(self, say, then):
        self.say, self.then = say, then
    def connectionMade(self):
        self.transport.write(self.say)
    def dataReceived(self, data):
        print("client got", data.decode())
        self.transport.loseConnection()
    def connectionLost(self, reason):
        print("client lost", reason.type.__name__)
        self.then()

def connect(say, then):
    point = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    endpoints.connectProtocol(point, Client(say, then))

def finish():
    reactor.callLater(0.5, lambda: print([event["failure"].type.__name__ for event in logged]))
    reactor.callLater(0.6, reactor.stop)

fail_at_the_end = False
port = reactor.listenTCP(0, protocol.Factory.forProtocol(Server), interface="127.0.0.1")
"""


def test_it_is_the_reactor() -> None:
    program = """
    from txsimplex import fast_reactor
    fast_reactor.install()
    from twisted.internet import reactor
    print(type(reactor).__name__, type(reactor).__mro__[1].__name__)
    """
    assert run(program) == "FastEPollReactor EPollReactor\n"


@pytest.mark.parametrize("name", ["_selectables", "_disconnectSelectable", "_doReadOrWrite"])
def test_twisteds_own_is_taken_when_it_has_changed_too_much(name: str) -> None:
    program = f"""
    from txsimplex import fast_reactor
    fast_reactor._NEEDED += ("{name}_of_another_name",)
    fast_reactor.install()
    from twisted.internet import reactor
    print(type(reactor).__name__)
    """
    assert run(program) == "EPollReactor\n"


def test_data_times_and_threads() -> None:
    program = (
        PAIR
        + """
from twisted.internet.threads import deferToThread
reactor.callLater(0.01, lambda: deferToThread(lambda: "thread").addCallback(print))
reactor.callLater(0.1, connect, b"hello", finish)
reactor.run()
"""
    )
    assert run(program) == (
        "thread\nclient got hello\nclient lost ConnectionDone\nserver lost ConnectionDone\n[]\n"
    )


def test_a_fault_is_logged_and_ends_its_connection_only() -> None:
    program = (
        PAIR
        + """
connect(b"fail", lambda: connect(b"hello", finish))
reactor.run()
"""
    )
    assert sorted(run(program).splitlines()) == [
        "['RuntimeError']",
        "client got hello",
        "client lost ConnectionDone",
        "client lost ConnectionDone",
        "server lost ConnectionDone",
        "server lost RuntimeError",
    ]


def test_a_fault_at_the_end_of_a_connection_is_logged_too() -> None:
    program = (
        PAIR
        + """
fail_at_the_end = True
connect(b"fail", finish)
reactor.run()
"""
    )
    output = run(program)
    assert "['RuntimeError', 'RuntimeError']" in output


def test_an_event_for_one_that_an_earlier_event_has_closed() -> None:
    program = """
    import socket
    from txsimplex import fast_reactor
    fast_reactor.install()
    from twisted.internet import reactor
    ends = [socket.socketpair() for _ in range(2)]

    class Reader:
        def __init__(self, own, other):
            self.own, self.other = own, other
        def fileno(self):
            return self.own.fileno()
        def logPrefix(self):
            return "reader"
        def doRead(self):
            print("read once")
            reactor.removeReader(self)
            reactor.removeReader(readers[self.other])
            reactor.callLater(0, reactor.stop)
        def connectionLost(self, reason):
            pass

    readers = [Reader(ends[0][0], 1), Reader(ends[1][0], 0)]
    for reader in readers:
        reactor.addReader(reader)
    for pair in ends:
        pair[1].send(b"x")
    reactor.run()
    """
    assert run(program) == "read once\n"


def test_signals_stop_it() -> None:
    program = """
    import os, signal
    from txsimplex import fast_reactor
    fast_reactor.install()
    from twisted.internet import reactor
    reactor.callLater(0.05, os.kill, os.getpid(), signal.SIGTERM)
    reactor.addSystemEventTrigger("before", "shutdown", print, "stopping")
    reactor.run()
    """
    assert run(program) == "stopping\n"


def test_what_is_called_before_waiting() -> None:
    """After all that is due, however long it would wait; what fails is logged."""
    program = """
    from twisted.python import log
    from txsimplex import fast_reactor
    fast_reactor.install()
    from twisted.internet import reactor
    logged = []
    log.addObserver(lambda event: logged.append(event) if event["isError"] else None)

    def fail():
        raise RuntimeError("a fault")

    def first():
        print("first")
        reactor.callBeforeWaiting(second)
        print("again")

    def second():
        print("second")
        reactor.callLater(0.01, third)

    def third():
        print("third")
        reactor.callBeforeWaiting(lambda: print("last"))
        reactor.stop()

    reactor.callLater(0, lambda: print("due"))
    reactor.callBeforeWaiting(fail)
    reactor.callBeforeWaiting(first)
    reactor.run()
    print([event["failure"].type.__name__ for event in logged])
    """
    said = run(program).split("\n")
    assert said[:-1] == ["due", "first", "again", "second", "third", "last", "['RuntimeError']"]


def test_it_does_not_wait_for_ever_to_be_called_before_waiting() -> None:
    """Two turns more, if there is always something to do."""
    program = """
    import os
    from txsimplex import fast_reactor
    fast_reactor.install()
    from twisted.internet import reactor
    readable, writable = os.pipe()
    os.write(writable, b"never read")

    class Busy:
        turns = 0
        def fileno(self):
            return readable
        def logPrefix(self):
            return "busy"
        def doRead(self):
            self.turns += 1
            if self.turns in (5, 10):
                reactor.callBeforeWaiting(self.called)
        def called(self):
            print("called after", self.turns)
            if self.turns > 9:
                reactor.stop()
        def connectionLost(self, reason):
            pass

    reactor.addReader(Busy())
    reactor.run()
    """
    assert run(program) == "called after 7\ncalled after 12\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from twisted.internet import reactor", "FastEPollReactor"),
        ("from twisted.internet import epollreactor; epollreactor.install()", "EPollReactor"),
        ("from twisted.internet import selectreactor; selectreactor.install()", "SelectReactor"),
        (
            "from twisted.internet import reactor; reactor.callLater(1, print)",
            "EPollReactor",
        ),
        ("from twisted.internet import reactor; reactor.startRunning()", "EPollReactor"),
    ],
)
def test_it_replaces_a_default_that_nobody_chose_or_uses(before: str, after: str) -> None:
    """As some package's plugin has it installed, when twistd looks for plugins."""
    program = (
        f"{before}\n"
        "from txsimplex import fast_reactor\n"
        "fast_reactor.replace_default()\n"
        "from twisted.internet import reactor\n"
        "import sys\n"
        "assert sys.modules['twisted.internet.reactor'] is reactor\n"
        "print(type(reactor).__name__)\n"
    )
    assert run(program) == f"{after}\n"
