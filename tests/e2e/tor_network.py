"""A Tor network on this machine, for tests: directory authorities and relays, all on 127.0.0.1.

    with TorNetwork(directory) as network:
        tor = TorProcess(reactor, path, socks=True, include=network.torrc)

Each tor is told of these authorities before it runs, and of no other, so none ever knows an address
outside of this machine. It takes about half a minute until all know each other.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

AUTHORITIES: Final = 3
RELAYS: Final = 2

_FIRST_VOTE: Final = 10
"""Seconds: authorities vote at multiples of it, at first."""
_VOTING_INTERVAL: Final = 10
_VOTE_LEAD: Final = 4
"""Seconds of a vote and of passing it on."""
_READY_TIME: Final = 240.0
_END_TIME: Final = 10.0
_ANY: Final = """\
TestingTorNetwork 1
UseDefaultFallbackDirs 0
Address 127.0.0.1
AddressDisableIPv6 1
OutboundBindAddress 127.0.0.1
PathsNeededToBuildCircuits 0.25
UseEntryGuards 0
VanguardsLiteEnabled 0
TestingDirConnectionMaxStall 5 seconds
TestingClientMaxIntervalWithoutRequest 1 seconds
GeoIPFile /dev/null
GeoIPv6File /dev/null
AvoidDiskWrites 1
"""
_RELAY: Final = """\
DataDirectory {directory}
Nickname {name}
SocksPort 0
ORPort 127.0.0.1:{or_port}
AssumeReachable 1
ExitRelay 0
ExitPolicy reject *:*
ServerDNSDetectHijacking 0
ServerDNSTestAddresses
ServerDNSResolvConfFile {directory}/resolv.conf
ServerDNSAllowBrokenConfig 1
PublishServerDescriptor 1
ExtraInfoStatistics 0
DirReqStatistics 0
HiddenServiceStatistics 0
NumCPUs 1
ShutdownWaitLength 0
Log notice stdout
"""
_AUTHORITY: Final = f"""\
DirPort 127.0.0.1:{{dir_port}}
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ContactInfo nobody@test.invalid
TestingV3AuthInitialVotingInterval {_FIRST_VOTE} seconds
TestingV3AuthInitialVoteDelay 2 seconds
TestingV3AuthInitialDistDelay 2 seconds
V3AuthVotingInterval {_VOTING_INTERVAL} seconds
V3AuthVoteDelay 2 seconds
V3AuthDistDelay 2 seconds
V3AuthNIntervalsValid 3
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
MinUptimeHidServDirectoryV2 0 seconds
TestingMinExitFlagThreshold 0
ConsensusParams hs_intro_max_introduce2_bw=0
"""
# Not by a proxy that the environment names.
_opener: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TorMissingError(Exception):
    """Tor is not installed."""


class TorNetworkError(Exception):
    """The network did not come up; the text has a log."""


class _Node:
    """A relay of the network; with `dir_port` it is a directory authority, too."""

    def __init__(self, directory: Path, or_port: int, dir_port: int = 0) -> None:
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.name = directory.name
        self.or_port = or_port
        self.dir_port = dir_port
        self.line = ""
        self._process: subprocess.Popen[bytes] | None = None

    def make_keys(self) -> None:
        """An authority's identity, and how others are told of it."""
        keys = self.directory / "keys"
        keys.mkdir(mode=0o700)
        _output(
            *("tor-gencert", "--create-identity-key", "-m", "3"),
            *("-i", f"{keys}/authority_identity_key", "-s", f"{keys}/authority_signing_key"),
            *("-c", f"{keys}/authority_certificate", "-a", f"127.0.0.1:{self.dir_port}"),
            *("--passphrase-fd", "0"),
            said="x\n",
        )
        certificate = (keys / "authority_certificate").read_text()
        identity = _found(r"(?m)^fingerprint (\w{40})$", certificate)
        shown = _output(
            *("tor", "--ignore-missing-torrc", "-f", "/nonexistent", "--defaults-torrc"),
            *("/nonexistent", "--list-fingerprint", "--quiet", "--DisableNetwork", "1"),
            *("--ORPort", "127.0.0.1:1", "--DataDirectory", str(self.directory)),
            *("--DirAuthority", "x 127.0.0.1:1 " + "f" * 40, "--UseDefaultFallbackDirs", "0"),
        )
        fingerprint = _found(r"((?:[0-9A-F]{4} ?){10})", shown).strip()
        self.line = (
            f"DirAuthority {self.name} orport={self.or_port} no-v2 v3ident={identity} "
            f"127.0.0.1:{self.dir_port} {fingerprint}"
        )

    def start(self, lines: Sequence[str]) -> None:
        """Starts tor, which ends with this process."""
        text = _RELAY + (_AUTHORITY if self.dir_port else "")
        torrc = self.directory / "torrc"
        (self.directory / "resolv.conf").touch()
        torrc.write_text(
            text.format(
                directory=self.directory,
                name=self.name,
                or_port=self.or_port,
                dir_port=self.dir_port,
            )
            + "".join(f"{line}\n" for line in lines)
        )
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("tor", "-f", str(torrc), "--defaults-torrc", "/nonexistent"),
                    *("__OwningControllerProcess", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def check(self) -> None:
        """Raises `TorNetworkError` when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            log = (self.directory / "log").read_text(errors="replace")
            raise TorNetworkError(f"{self.name} has ended:\n{log[-2000:]}")

    def relays_known(self) -> int:
        """How many relays are in the consensus that an authority serves."""
        url = f"http://127.0.0.1:{self.dir_port}/tor/status-vote/current/consensus-microdesc"
        with suppress(OSError), _opener.open(url, timeout=2) as answer:
            return len(re.findall(r"(?m)^s .*HSDir.*Running", answer.read().decode()))
        return 0

    def end(self) -> None:
        """Ends tor."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class TorNetwork:
    """A context manager: the network is there inside of the block. Raises `TorMissingError`.

    `torrc` is a file with the lines of a torrc for who uses it.
    """

    def __init__(self, directory: Path) -> None:
        if shutil.which("tor") is None or shutil.which("tor-gencert") is None:
            raise TorMissingError("tor is not installed (Debian: tor)")
        ports = free_ports(2 * AUTHORITIES + RELAYS)
        directory = directory.absolute()
        self._authorities = [
            _Node(directory / f"authority{number}", next(ports), next(ports))
            for number in range(AUTHORITIES)
        ]
        self._nodes = [
            *self._authorities,
            *(_Node(directory / f"relay{number}", next(ports)) for number in range(RELAYS)),
        ]
        self.torrc = directory / "torrc"

    def __enter__(self) -> TorNetwork:
        with ThreadPoolExecutor() as threads:
            list(threads.map(_Node.make_keys, self._authorities))
        lines = [*_ANY.splitlines(), *(each.line for each in self._authorities)]
        self.torrc.write_text("".join(f"{line}\n" for line in lines))
        # Right after a vote: so relays have most time to be known at the next one. What misses
        # that is known a whole interval later.
        time.sleep((_FIRST_VOTE - _VOTE_LEAD + 0.3 - time.time()) % _FIRST_VOTE)
        with ExitStack() as stack:
            for node in self._nodes:
                stack.callback(node.end)
                node.start(lines)
            self._wait_until_ready()
            self._ending = stack.pop_all()
        return self

    def _wait_until_ready(self) -> None:
        """Clients that come earlier find nothing, and try again late."""
        deadline = time.monotonic() + _READY_TIME
        while any(each.relays_known() < len(self._nodes) for each in self._authorities):
            for node in self._nodes:
                node.check()
            if time.monotonic() > deadline:
                raise TorNetworkError("the authorities do not know all relays")
            time.sleep(0.2)

    def __exit__(self, *exception: object) -> None:
        self._ending.close()


def free_ports(count: int) -> Iterator[int]:
    """Ports of 127.0.0.1 that nobody has now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    return iter(ports)


def _output(*command: str, said: str = "") -> str:
    run = subprocess.run(
        command, input=said, capture_output=True, text=True, check=False, timeout=60
    )
    if run.returncode:
        raise TorNetworkError(f"{command[0]} failed:\n{run.stdout}{run.stderr}")
    return run.stdout


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise TorNetworkError(f"not what was expected of tor:\n{text}")
    return found[1]
