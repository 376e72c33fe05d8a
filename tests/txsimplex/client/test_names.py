"""Names are looked up beside everything else, and the end of the process waits for none."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock

from txsimplex.client.names import ThreadedResolver

FOUND = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", 5223, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 5223)),
    (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/not/an/address"),
]


class Reactor(Clock):
    """What threads tell it happens when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Callable[..., object], Any]] = []

    def callFromThread(self, what: Callable[..., object], *args: Any) -> None:
        self.told.append((what, args))

    def turn(self, count: int) -> None:
        """Waits for `count` threads to tell something."""
        end = time.monotonic() + 10
        while len(self.told) < count:
            assert time.monotonic() < end
            time.sleep(0.001)
        told, self.told = self.told, []
        for what, args in told:
            what(*args)


class Receiver:
    """Takes down what it is told; None for the end."""

    def __init__(self) -> None:
        self.began: Any = None
        self.log: list[Any] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        self.began = resolutionInProgress

    def addressResolved(self, address: Any) -> None:
        self.log.append(address)

    def resolutionComplete(self) -> None:
        self.log.append(None)


class Names:
    """A resolver whose lookups of names that begin with "slow" take until `go` is set."""

    def __init__(self, **limits: int) -> None:
        self.reactor, self.go, self.asked = Reactor(), Event(), list[str]()
        self.resolver = ThreadedResolver(self.reactor, getaddrinfo=self.getaddrinfo, **limits)

    def getaddrinfo(self, name: str, port: int, *kind: int) -> Any:
        self.asked.append(name)
        if name.startswith("slow"):
            assert self.go.wait(10)
        if "none" in name:
            raise socket.gaierror(-2, "no such name")
        if "long" in name:
            raise UnicodeError("label too long")
        return FOUND

    def look_up(self, name: str, **more: Any) -> Receiver:
        receiver: Any = Receiver()
        assert self.resolver.resolveHostName(receiver, name, 5223, **more) is receiver.began
        assert receiver.began.name == name
        assert isinstance(receiver, Receiver)
        return receiver


IPV6, IPV4 = IPv6Address("TCP", "2606:4700::1", 5223), IPv4Address("TCP", "1.1.1.1", 5223)


def test_addresses_of_a_name() -> None:
    names = Names()
    receiver = names.look_up("smp.example.com")
    assert receiver.log == []
    names.reactor.turn(1)
    assert receiver.log == [IPV6, IPV4, None]
    only = names.look_up("smp.example.com", addressTypes=[IPv4Address])
    names.reactor.turn(1)
    assert only.log == [IPV4, None]


@pytest.mark.parametrize("name", ["none.example.com", "long.example.com"])
def test_a_name_without_addresses(name: str) -> None:
    names = Names()
    receiver = names.look_up(name)
    names.reactor.turn(1)
    assert receiver.log == [None]


@pytest.mark.parametrize("name", ["a.onion", "x.A.oNiOn..", "onion"])
def test_names_of_onion_services_are_not_asked_for(name: str) -> None:
    names = Names()
    assert names.look_up(name).log == [None]
    assert names.asked == []


def test_lookups_do_not_wait_for_one_another_while_there_are_threads() -> None:
    names = Names(most_threads=2)
    slow, quick = names.look_up("slow.example.com"), names.look_up("smp.example.com")
    names.reactor.turn(1)
    assert (slow.log, quick.log) == ([], [IPV6, IPV4, None])
    names.go.set()
    names.reactor.turn(1)
    assert slow.log == [IPV6, IPV4, None]


def test_only_so_many_wait() -> None:
    names = Names(most_threads=1, most_waiting=1)
    first, second, third = (names.look_up(f"slow{each}.example.com") for each in range(3))
    assert (second.log, third.log) == ([], [None])
    names.go.set()
    names.reactor.turn(1)
    names.reactor.turn(1)
    assert first.log == second.log == [IPV6, IPV4, None]
    assert names.asked == ["slow0.example.com", "slow1.example.com"]


def test_what_nobody_waits_for_any_more_is_not_looked_up() -> None:
    names = Names(most_threads=1)
    slow = names.look_up("slow.example.com")
    cancelled, late = names.look_up("a.example.com"), names.look_up("b.example.com")
    cancelled.began.cancel()
    names.reactor.advance(46)
    current = names.look_up("c.example.com")
    slow.began.cancel()
    names.go.set()
    names.reactor.turn(1)
    names.reactor.turn(1)
    assert names.asked == ["slow.example.com", "c.example.com"]
    assert (slow.log, cancelled.log, late.log) == ([], [], [None])
    assert current.log == [IPV6, IPV4, None]


def test_no_threads_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    names = Names(most_threads=1)
    with monkeypatch.context() as patched:
        patched.setattr("txsimplex.client.names.Thread.start", start)
        assert names.look_up("smp.example.com").log == [None]
    receiver = names.look_up("smp.example.com")
    names.reactor.turn(1)
    assert receiver.log == [IPV6, IPV4, None]


def test_the_process_ends_without_them() -> None:
    program = """
import time
from twisted.internet import reactor
from txsimplex.client.names import ThreadedResolver
class Receiver:
    def resolutionBegan(self, resolution): pass
resolver = ThreadedResolver(reactor, getaddrinfo=lambda *args: time.sleep(60))
reactor.callWhenRunning(resolver.resolveHostName, Receiver(), "example.com")
reactor.callLater(0.1, reactor.stop)
reactor.run()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
