"""The verb `view` of the command line."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import webbrowser
from typing import Any

from stylegan_dist.arguments import add_verb, add_which, path, whole, word
from stylegan_dist.errors import EXIT_OK
from stylegan_dist.ranges import Range

_EXAMPLES = """\
examples:
  stylegan-dist view runs/faces                                         # opens the page in the browser
  stylegan-dist view runs/faces --directions dirs.safetensors           # sliders for directions of edit find
  stylegan-dist view runs/faces --no-browser --port 8000                # on another machine; here, in a second terminal:
                                                                        #   ssh -N -L 8000:127.0.0.1:8000 THAT_MACHINE
The page is served on 127.0.0.1 alone, to whoever has the whole address. docs/view.md says what is on it.
"""


def add_view(verbs: Any) -> None:
    """Add the verb to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "view", _view, help="play with a trained generator in the browser", epilog=_EXAMPLES,
        description="Serve a page on which the averaged generator of a run draws while its controls are moved: seed,\n"
        "truncation, class, blends of two seeds, directions. It needs no network. Ctrl-C ends it.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    parser.add_argument("--directions", type=path("--directions"), metavar="FILE",
                        help="of edit find (default: found from the weights at the start)")
    parser.add_argument("--port", type=whole("--port", Range(0, 65535)), default=0, help="0: a free one (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    add_which(parser)
    parser.add_argument("--device", type=word("--device"), help="cpu or cuda (default: cuda if there is one)")


def _view(args: argparse.Namespace) -> int:
    from stylegan_dist.latents.trained import open_trained
    from stylegan_dist.view.scene import open_scene
    from stylegan_dist.view.server import ViewServer

    scene = open_scene(open_trained(args.run_dir, args.device, args.which), args.directions)
    with ViewServer(scene, args.port) as server:
        trained = scene.trained
        print(f"{trained.run_dir}, {trained.nimg} images, on {trained.device}; Ctrl-C ends it\n{server.url}", flush=True)
        if not args.no_browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()  # it may wait for the browser
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended", flush=True)
    return EXIT_OK


def _has_screen() -> bool:
    """Whether a browser can show a window: one of a terminal would take this one."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
