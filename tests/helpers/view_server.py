"""The server of the viewer, in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylegan_dist.latents.trained import open_trained
from stylegan_dist.view.scene import open_scene
from stylegan_dist.view.server import ViewServer


@contextmanager
def served(run: Path, directions: Path | None = None) -> Iterator[ViewServer]:
    with ViewServer(open_scene(open_trained(run, "cpu"), directions and str(directions))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
