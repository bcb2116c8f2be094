"""The web server of the page. It listens on 127.0.0.1 alone, and answers only who has the token that it has printed."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from stylegan_dist.errors import InputError
from stylegan_dist.view.newest import Newest
from stylegan_dist.view.scene import Scene
from stylegan_dist.view.settings import Settings, parse_settings

ADDRESS = "127.0.0.1"
IDLE_SECONDS = 60       # after which a connection that says nothing is closed
_TOKEN_BYTES = 16
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)  # any port: it may be one end of a tunnel
_TYPES = {"page.html": "text/html; charset=utf-8", "page.css": "text/css; charset=utf-8",
          "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}
_GUARDS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class ViewServer(ThreadingHTTPServer):
    """Serves one scene until it is closed.

    Attributes:
        token: what a request must bring.
        newest: what draws.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there, two servers would share a port
    request_queue_size = 512  # connections that come at once

    def __init__(self, scene: Scene, port: int = 0):
        """Listen, on a free port for 0. Raises InputError where another program has the port."""
        self.scene, self.token, self.newest = scene, secrets.token_urlsafe(_TOKEN_BYTES), Newest()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port} cannot be used ({error.strerror or error}): give another, or 0 for a free one"
                             ) from None
        folder = Path(__file__).parent
        self.files = {name: (folder / name).read_bytes() for name in _TYPES}
        self.files["page.html"] = self.files["page.html"].replace(b"{token}", self.token.encode())

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}"

    def server_bind(self) -> None:
        """Without the look-up of this machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def server_close(self) -> None:
        super().server_close()
        self.newest.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True  # else the body may wait until the headers are acknowledged
    server_version, sys_version = "stylegan-dist", ""

    def do_GET(self) -> None:
        place, _, query = self.path.partition("?")
        words = query.split("&") if query else []
        tokens = [word.removeprefix("token=") for word in words if word.startswith("token=")]
        if not _HOST.fullmatch(self.headers.get("Host") or ""):
            return self._refuse(HTTPStatus.FORBIDDEN, "this is the server of 127.0.0.1, and of no other name")
        if len(tokens) != 1 or not secrets.compare_digest(tokens[0].encode(), self.server.token.encode()):
            return self._refuse(HTTPStatus.FORBIDDEN, "the token is missing or wrong: open the address that stylegan-dist view "
                                "has printed")
        try:
            self._answer(place, "&".join(word for word in words if not word.startswith("token=")))
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError:  # the browser has gone away
            self.close_connection = True
        except Exception as error:  # such as too little memory of a GPU: the page shows it, and the server goes on
            first = str(error).strip().partition("\n")[0]
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {first}")

    def _answer(self, place: str, query: str) -> None:
        scene = self.server.scene
        name = "page.html" if place == "/" else place.removeprefix("/")
        if name in _TYPES:
            self._send(_TYPES[name], self.server.files[name])
        elif place == "/facts":
            self._send("application/json", json.dumps(scene.facts()).encode())
        elif place == "/frame":
            settings = self._settings(query)
            drawn = self.server.newest.run(lambda: _timed(scene.frame, settings))
            if drawn is None:
                self._send("", b"", HTTPStatus.NO_CONTENT)
            else:
                (kind, content), seconds = drawn
                self._send(kind, content, Server_Timing=f"draw;dur={1000 * seconds:.1f}")
        elif place in ("/picture.png", "/latents.safetensors"):
            settings = self._settings(query)
            kind, write = ("png", scene.png) if place == "/picture.png" else ("safetensors", scene.latents_file)
            content = self.server.newest.always(lambda: write(settings))
            name = f"seed{settings.seed:04d}.{kind}"
            self._send("image/png" if kind == "png" else "application/octet-stream", content,
                       Content_Disposition=f'attachment; filename="{name}"')
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _settings(self, query: str) -> Settings:
        scene = self.server.scene
        return parse_settings(query, scene.trained.generator.num_ws, scene.trained.shape.num_classes, scene.moves)

    def _send(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK, **more: str) -> None:
        """Keywords are headers, with underscores for hyphens."""
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        for name, value in {**_GUARDS, **{name.replace("_", "-"): value for name, value in more.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body that came with the request is not read
        self._send("text/plain; charset=utf-8", (reason + "\n").encode(errors="replace"), status, Connection="close")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in a line."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would hold the token."""


def _timed(draw: Callable[[Settings], tuple[str, bytes]], settings: Settings) -> tuple[tuple[str, bytes], float]:
    began = time.perf_counter()
    return draw(settings), time.perf_counter() - began
