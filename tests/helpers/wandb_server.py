"""A W&B server on this machine, which knows just enough for a login and for a run, and can stop to answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef" * 2 + "01234567"


class Server(ThreadingHTTPServer):
    """`url` is its address, `bodies` is what it was sent. Clear `answering`, and every later request hangs;
    a request for /hang does so, too. `resume_at` is the last step of the run that it knows, None for none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[bytes] = []
        self.resume_at: int | None = None  # W&B's last step of a run that is there already
        self.answering = threading.Event()
        self.answering.set()

    def rows(self) -> list[dict]:
        """The rows of history that it was sent."""
        found = []
        for body in self.bodies:
            with suppress(ValueError):
                content = json.loads(body)
                for file, part in (content.get("files") or {}).items() if isinstance(content, dict) else ():
                    if file == "wandb-history.jsonl":
                        found += [json.loads(line) for line in part["content"]]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """For a process that uses this server with a key."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


@contextmanager
def serve() -> Iterator[Server]:
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.answering.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.bodies.append(body)
        if self.path == "/hang":
            self.server.answering.clear()
        else:
            self.server.answering.wait(100)
        stream = self.path.endswith("file_stream")
        answer = json.dumps({} if stream else {"data": _answers(body, self.server.resume_at)}).encode()
        with suppress(OSError):  # the client has not waited
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_PUT = do_CONNECT = do_POST  # noqa: N815 (the names that http.server looks for)

    def log_message(self, *args: object) -> None:
        pass


def _answers(body: bytes, resume_at: int | None) -> dict:
    """The answers to all questions of GraphQL that we know; a client takes the one it has asked for."""
    try:
        run_id = json.loads(body)["variables"]["name"]
    except (ValueError, KeyError, TypeError):
        run_id = "unnamed"
    project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}
    return {
        "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
        "model": None if resume_at is None else {"name": "project", "entity": {"id": "e", "name": "me"}, "bucket": {
            "name": run_id, "displayName": "name", "summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": 1,
            "eventsLineCount": 0, "historyTail": json.dumps([json.dumps({"_step": resume_at, "_runtime": 1})]),
            "eventsTail": "[]", "config": "{}", "tags": [], "notes": "", "wandbConfig": json.dumps({"t": 1}),
        }},
        "upsertBucket": {"inserted": True, "bucket": {
            "id": "b", "name": run_id, "displayName": "name", "sweepName": None, "historyLineCount": 0, "project": project,
        }},
        "createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": []},
        "serverInfo": {"features": []},
        "organization": None,
    }
