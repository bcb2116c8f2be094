"""How much faster do two processes pack than one, and do they write the same bytes, also after a kill -9?

    python benchmarks/pack.py                                 # made images of 64 pixels, some minutes
    python benchmarks/pack.py photos.zip --resolution 256

Whole runs of `stylegan-dist pack`, from the start of Python to its end, which take turns: wall time, images a second,
and the median ratio to one process of the same turn. Then one run is killed with SIGKILL several times and continued.
All of them must have written the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from readers import photo
from tqdm import tqdm

from stylegan_dist.data.index import load_index
from stylegan_dist.machine import available_cores

MADE = 40_000
KILLS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help=f"a folder, zip or tar of images (default: {MADE} made ones)")
    parser.add_argument("--resolution", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2), help="processes (default: 1 and 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    args = parser.parse_args()
    print(platform.processor() or platform.machine(), f"{available_cores()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = args.source or make(folder / "images", args.resolution)
        seconds: dict[int, list[float]] = {workers: [] for workers in args.workers}
        digests = set()
        for _ in tqdm(range(args.rounds), desc="turns", disable=None):
            for workers in args.workers:
                began = time.perf_counter()
                finish(source, folder / "out", args.resolution, workers)
                seconds[workers].append(time.perf_counter() - began)
                count, digest = load_index(folder / "out").num_samples, digest_of(folder / "out")
                digests.add(digest)
                shutil.rmtree(folder / "out")
        print("\n| processes | s | images/s | of one process |\n|---|---|---|---|")
        for workers, times in seconds.items():
            ratio = np.median(np.array(seconds[args.workers[0]]) / np.array(times))
            print(f"| {workers} | {np.median(times):.1f} | {count / np.median(times):.0f} | {ratio:.2f}x |")
        killed = 0
        while killed < KILLS:
            process = start(source, folder / "out", args.resolution, args.workers[-1])
            try:
                process.wait(timeout=random.uniform(1, np.median(seconds[args.workers[-1]])))
                break  # it was done before
            except subprocess.TimeoutExpired:
                process.kill()  # its workers end by themselves
                process.wait()
                killed += 1
        finish(source, folder / "out", args.resolution, args.workers[-1])
        digests.add(digest_of(folder / "out"))
        print(f"\n{count} images; killed {killed} times and continued; {len(digests)} different outputs")
        if len(digests) > 1:
            sys.exit("the outputs differ")


def make(folder: Path, size: int) -> Path:
    """Pictures of two and a half times the size, so that packing decodes, crops, resizes and encodes, as with photos."""
    folder.mkdir()
    for number in range(512):
        photo(size * 5 // 2, number).save(folder / f"{number}.jpg", quality=95)
    for number in range(512, MADE):
        os.link(folder / f"{number % 512}.jpg", folder / f"{number}.jpg")
    return folder


def start(source: Path, out: Path, resolution: int, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "stylegan_dist.cli", "pack", str(source), str(out), "--resolution", str(resolution),
               "--labels", "none", "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(*options) -> None:
    """A run to its end."""
    if code := start(*options).wait():
        sys.exit(f"pack has failed with exit code {code}")


def digest_of(folder: Path) -> str:
    """Of the names and bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
