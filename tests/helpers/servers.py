"""Real servers on loopback that hand out a folder, HTTP and S3, with faults on demand."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from launching import free_port

# What a server can do to a request. Each gets the handler and what it should have sent.
Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


def error_500(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(500)


def truncated(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the body, and an orderly end."""
    _head(handler, len(content))
    handler.wfile.write(content[: len(content) // 2])


def shortened(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the body, announced as if it were all."""
    _head(handler, len(content) // 2)
    handler.wfile.write(content[: len(content) // 2])


def altered_at(place: Callable[[bytes], int]) -> Fault:
    """One bit of the byte that `place` finds is another."""
    def fault(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        byte = place(content)
        _head(handler, len(content))
        handler.wfile.write(content[:byte] + bytes([content[byte] ^ 1]) + content[byte + 1:])
    return fault


altered = altered_at(lambda content: len(content) // 2)


def reset(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The connection is cut in the middle of the body."""
    _head(handler, len(content))
    handler.wfile.write(content[: len(content) // 3])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.rfile = handler.wfile = open(os.devnull, "r+b")  # noqa: SIM115 (the handler closes it)


def slow(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The whole body, in ten pieces with pauses."""
    _head(handler, len(content))
    piece = -(-len(content) // 10)
    for begin in range(0, len(content), piece):
        handler.wfile.write(content[begin:begin + piece])
        handler.wfile.flush()
        time.sleep(0.03)


ALL_FAULTS = (error_500, truncated, shortened, altered, reset, slow)


def _head(handler: BaseHTTPRequestHandler, length: int) -> None:
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


class _Server(ThreadingHTTPServer):
    """Its connections end when it closes them, although readers are forked from this process and would hold them open."""

    daemon_threads = True

    def __init__(self, *args):
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__(*args)
        os.register_at_fork(after_in_child=self._forget)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def _forget(self) -> None:
        for connection in list(self._connections):
            if connection.fileno() >= 0:
                os.close(connection.detach())


class FaultyServer:
    """A server on loopback.

    Attributes:
        url: of its root.
        requests: how often each file was asked for with GET.
        fault: what to do to request number n (from 0) of a file: a fault, or None to serve it.
    """

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]):
        self.requests: Counter[str] = Counter()
        self.fault: Callable[[str, int], Fault | None] = lambda name, number: None
        self._counting = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), functools.partial(handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def next_fault(self, name: str) -> Fault | None:
        """Count a request, and say what to do to it."""
        with self._counting:
            self.requests[name] += 1
            return self.fault(name, self.requests[name] - 1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _FolderHandler(SimpleHTTPRequestHandler):
    def __init__(self, folder: Path, owner: FaultyServer, *args):
        self.owner = owner
        super().__init__(*args, directory=str(folder))

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        fault = self.owner.next_fault(name)
        path = Path(self.directory) / name
        if fault is not None and path.is_file():
            fault(self, path.read_bytes())
        else:
            super().do_GET()

    def log_message(self, *args) -> None:
        pass


class _GatewayHandler(BaseHTTPRequestHandler):
    """Hands requests on to another server, and its answers back."""

    protocol_version = "HTTP/1.1"  # uploads wait for its "100 Continue"

    def __init__(self, port: int, owner: FaultyServer, *args):
        self.port, self.owner = port, owner
        super().__init__(*args)

    def _hand_on(self) -> None:
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        fault = self.owner.next_fault(self.path.partition("?")[0].lstrip("/")) if self.command == "GET" else None
        if fault is not None and answer.status == 200:
            fault(self, content)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        # To HEAD, the length of what it does not send.
        self.send_header("Content-Length", answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        server.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _hand_on  # noqa: N815 (the names that http.server looks for)

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(functools.partial(_FolderHandler, folder))
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def s3_server() -> Iterator[FaultyServer]:
    """moto's S3 server in a process of its own behind a gateway, with the environment that drivers take credentials from."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    gateway = FaultyServer(functools.partial(_GatewayHandler, port))
    try:
        deadline = time.monotonic() + 600
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=60):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
        with pytest.MonkeyPatch.context() as environment:
            for name, value in (("AWS_ENDPOINT_URL", gateway.url), ("AWS_ACCESS_KEY_ID", "test"),
                                ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1"),
                                ("AWS_MAX_ATTEMPTS", "1")):  # faults are for us to mend
                environment.setenv(name, value)
            yield gateway
    finally:
        gateway.close()
        process.kill()
        process.wait()
