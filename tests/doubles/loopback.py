"""A loopback HTTP server for a double of somebody's API: it takes requests apart and sends what it is given, well or
badly. What is answered is for a subclass to say.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Canned:
    """A response as it goes over the wire.

    `cut` bytes of the promised body are withheld and the connection closed; status 0 resets it without an answer.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: int = 0


class Loopback:
    """`with Loopback() as server:` serves on a free port of 127.0.0.1, a thread a connection."""

    root = ""  # of the API's paths: the end of `url`

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}{self.root}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        """The answer to a request; the names of `headers` are in lower case. Called by many threads."""
        raise NotImplementedError

    def logged(self, line: str) -> None:
        """What a real server would write into its log."""


def without_proxies(monkeypatch: Any) -> None:
    """Take the proxies out of the environment: a client would ask them for a server of this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self._body()
            if raw is None:  # who asked died while sending: nothing was asked
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            canned = server.respond(self.command, self.path, headers, raw)
            if canned.status:
                self._write(canned)
            else:  # linger of 0 s: close sends a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

        def _body(self) -> bytes | None:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            size = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(size)
            return raw if len(raw) == size else None

        def _write(self, canned: Canned) -> None:
            self.send_response(canned.status)
            self.send_header("Content-Type", canned.content_type)
            self.send_header("Content-Length", str(len(canned.body)))
            for name, value in canned.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(canned.body[: len(canned.body) - canned.cut])
            if canned.cut:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = _serve

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the client went away
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):  # it did, or we reset the connection
                pass

        def log_message(self, format: str, *args: Any) -> None:
            server.logged(format % args)

    return Handler
