"""What is asked of a relay that runs, by its control socket (`smpd.control`)."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from smpd.config import Settings
from smpd.ctl.errors import CommandError
from torcfg.descriptions import LONGEST_SOCKET_PATH

ANSWER_TIME: Final = 45.0
"""Seconds that a relay has for an answer; some of them wait for tor."""
_MOST: Final = 1 << 20
"""Bytes of an answer."""


class NotRunning(CommandError):
    """There is no relay with this control socket."""


def control_socket(settings: Settings) -> Path:
    """Where the relay's control socket is. Raises `CommandError` when it is to have none."""
    path = settings.control.socket
    if path is None:
        raise CommandError("the configuration sets no control socket ([control] socket)")
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise CommandError(
            f"there is no control socket, since {path} has more than {LONGEST_SOCKET_PATH} bytes: "
            "set socket in [control]"
        )
    return path


def ask(path: Path, request: str, timeout: float = ANSWER_TIME) -> dict[str, Any]:
    """What a relay answers to a request. Raises `CommandError`; `NotRunning` when there is none."""
    try:
        line = _exchange(path, json.dumps({"request": request}).encode("ascii") + b"\n", timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning(f"no relay runs that has its control socket at {path}") from None
    except TimeoutError:
        raise CommandError("the relay does not answer") from None
    except PermissionError:
        raise CommandError(f"{path} is for the relay's user and root only") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be used: {error.strerror or error}") from None
    if not line.endswith(b"\n"):
        raise CommandError("the relay has closed its control socket")
    return _answer(line)


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as relay:
        relay.settimeout(timeout)
        relay.connect(str(path))
        relay.sendall(request)
        with relay.makefile("rb") as answers:
            return answers.readline(_MOST)


def _answer(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict):
        answer, error = said.get("answer"), said.get("error")
        if isinstance(answer, dict):
            return answer
        if isinstance(error, str):
            raise CommandError(error)
    raise CommandError("the relay's answer cannot be read")
