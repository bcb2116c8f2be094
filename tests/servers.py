"""Real servers on loopback that hand out a folder: HTTP with faults on demand, and S3."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from launching import free_port

# What a server can do to a request. Each gets the handler and the file's path.
Fault = Callable[[SimpleHTTPRequestHandler, Path], None]


def error_500(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    handler.send_error(500)


def truncated(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    """Half of the body, and an orderly end."""
    content = path.read_bytes()
    _head(handler, len(content))
    handler.wfile.write(content[: len(content) // 2])


def shortened(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    """Half of the body, announced as if it were all."""
    content = path.read_bytes()
    _head(handler, len(content) // 2)
    handler.wfile.write(content[: len(content) // 2])


def altered(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    """One bit in the middle is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    _head(handler, len(content))
    handler.wfile.write(content)


def reset(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    """The connection is cut in the middle of the body."""
    import socket

    content = path.read_bytes()
    _head(handler, len(content))
    handler.wfile.write(content[: len(content) // 3])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.rfile = handler.wfile = open(os.devnull, "r+b")  # noqa: SIM115 (the handler closes it)


def slow(handler: SimpleHTTPRequestHandler, path: Path) -> None:
    """The whole body, in ten pieces with pauses."""
    content = path.read_bytes()
    _head(handler, len(content))
    piece = -(-len(content) // 10)
    for begin in range(0, len(content), piece):
        handler.wfile.write(content[begin:begin + piece])
        handler.wfile.flush()
        time.sleep(0.03)


ALL_FAULTS = (error_500, truncated, shortened, altered, reset, slow)


def _head(handler: SimpleHTTPRequestHandler, length: int) -> None:
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


class FolderServer:
    """A folder over HTTP.

    Attributes:
        url: of the folder.
        requests: how often each file was asked for with GET.
        fault: what to do to request number n (from 0) of a file: a fault, or None to serve it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.fault: Callable[[str, int], Fault | None] = lambda name, number: None
        self._counting = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def count(self, name: str) -> int:
        with self._counting:
            self.requests[name] += 1
            return self.requests[name] - 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, owner: FolderServer, *args):
        self.owner = owner
        super().__init__(*args, directory=str(owner.folder))

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        fault = self.owner.fault(name, self.owner.count(name))
        path = self.owner.folder / name
        if fault is not None and path.is_file():
            fault(self, path)
        else:
            super().do_GET()

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[FolderServer]:
    server = FolderServer(folder)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def s3_server(monkeypatch) -> Iterator[str]:
    """moto's S3 server in a process of its own, with the environment that drivers take their credentials from: its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/", timeout=5):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
        for name, value in (("AWS_ENDPOINT_URL", url), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"),
                            ("AWS_DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(name, value)
        yield url
    finally:
        process.kill()
        process.wait()
