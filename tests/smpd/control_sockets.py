"""A control socket whose answers a test decides, for commands that have no relay."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any, Self


class Answers:
    """Gives each request the same answer, inside of the block; `requests` are those that came."""

    def __init__(self, path: Path, answer: Any) -> None:
        self._answer = json.dumps(answer).encode() + b"\n"
        self.requests: list[Any] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._path = path
        self._thread = threading.Thread(target=self._give)

    def _give(self) -> None:
        while True:
            connection = self._socket.accept()[0]
            with connection, connection.makefile("rwb") as file:
                line = file.readline()
                if not line:
                    return
                self.requests.append(json.loads(line))
                file.write(self._answer)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self._path))
        self._thread.join()
        self._socket.close()
        self._path.unlink()
