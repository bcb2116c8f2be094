"""How many samples a second does one core read, decode and batch, and in how much memory?

    python benchmarks/data.py                     # all of it, about two minutes
    python benchmarks/data.py --sizes 256 --seconds 10

In one run, over the same images: our stream, plain `webdataset` over the same shards (its own decode, shuffle of 1000)
and a reader of an uncompressed zip in the layout of NVIDIA's dataset tool that decodes with Pillow. Every
measurement is a process of its own without reader processes, so that its CPU time is that of one core; samples a
second are per second of CPU time, which other work on the machine disturbs least. The files are in the page cache.
Then the decoders alone, and the memory of our stream over 200,000 samples.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylegan_dist.data.images import ImageOptions
from stylegan_dist.data.index import load_index
from stylegan_dist.data.pack import PackOptions, pack
from stylegan_dist.data.stream import BatchStream

BATCH = 32
IMAGES = {32: 4096, 256: 1024, 1024: 96}
READERS = ("ours", "webdataset", "zip")
GROWTH_SAMPLES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(IMAGES), help="pixels (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time of one measurement (default: %(default)s)")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        reader, folder, size, seconds, least = args.one
        print(json.dumps(measure(reader, Path(folder), int(size), float(seconds), int(least))))
        return
    names = ("torch", "numpy", "pillow", "simplejpeg", "PyTurboJPEG", "torchvision", "torchcodec", "webdataset")
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores, Python {platform.python_version()},",
          ", ".join(f"{name} {version_of(name)}" for name in names))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        print(f"\n{'size':>5} {'format':<5} {'reader':<11} {'samples/s':>10} {'ours is':>8} {'peak MiB':>9}")
        for size in args.sizes:
            for encoding in ("jpg", "png"):
                folder = make(root, size, encoding)
                results = {reader: run(reader, folder, size, args.seconds) for reader in READERS}
                for reader, (rate, memory, _) in results.items():
                    ratio = results["ours"][0] / rate
                    print(f"{size:>5} {encoding:<5} {reader:<11} {rate:>10.0f} {ratio:>7.2f}x {memory:>9.0f}", flush=True)
        print(f"\n{'size':>5} {'format':<5} {'decoder':<12} {'images/s':>10} {'MPix/s':>8}")
        for size in args.sizes:
            decoders(size, args.seconds / 3)
        folder = make(root, 32, "jpg")
        _, peak, growth = run("ours", folder, 32, args.seconds, GROWTH_SAMPLES)
        print(f"\nmemory over {GROWTH_SAMPLES} samples: {growth:+.1f} MiB from the 20,000th on, peak {peak:.0f} MiB")


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not here"


def photo(size: int, number: int) -> Image.Image:
    """Smooth shapes, edges and a little noise: about as hard to compress as a photo."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(np.int16)
    pixels[size // 4:size // 2, size // 3:] //= 2
    return Image.fromarray((pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def make(root: Path, size: int, encoding: str) -> Path:
    """Shards, and a zip of the same encoded images."""
    folder = root / f"{encoding}-{size}"
    if folder.exists():
        return folder
    source = root / f"images-{size}"
    if not source.exists():
        source.mkdir()
        for number in range(IMAGES[size]):
            photo(size, number % 256).save(source / f"{number:05d}.png", compress_level=1)
    pack(source, folder, PackOptions(ImageOptions(size, encoding=encoding), samples_per_shard=max(IMAGES[size] // 8, 1)))
    import webdataset

    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        samples = webdataset.WebDataset(shards_of(folder), shardshuffle=False)
        for number, sample in enumerate(samples):
            archive.writestr(f"{number // 1000:05d}/img{number:08d}.{encoding}", sample[encoding])
    return folder


def shards_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar"))


def run(reader: str, folder: Path, size: int, seconds: float, least: int = 0) -> list[float]:
    command = [sys.executable, __file__, "--one", reader, str(folder), str(size), str(seconds), str(least)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(reader: str, folder: Path, size: int, seconds: float, least: int) -> list[float]:
    """Samples per second of CPU time, peak memory in MiB, growth of the memory after 20,000 samples in MiB."""
    torch.set_num_threads(1)
    batches = {"ours": our_batches, "webdataset": webdataset_batches, "zip": zip_batches}[reader](folder)
    for _ in range(max(4, min(2000, IMAGES[size]) // BATCH)):
        assert next(batches).shape[0] == BATCH
    count, early, began = 0, None, time.process_time()
    while (taken := time.process_time() - began) < seconds or count < least:
        next(batches)
        count += BATCH
        if early is None and count >= 20_000:
            early = resident()
    growth = resident() - early if early else 0.0
    return [count / taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, growth]


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def our_batches(folder: Path) -> Iterator[torch.Tensor]:
    for batch in BatchStream(load_index(folder), seed=0, lanes=64, block=4096, batch=BATCH, mirror=True):
        yield batch.images


def webdataset_batches(folder: Path) -> Iterator[torch.Tensor]:
    import webdataset

    encoding = folder.name.partition("-")[0]
    data = webdataset.WebDataset(shards_of(folder), shardshuffle=100).shuffle(1000).decode("torchrgb8").to_tuple(encoding)
    while True:
        for (images,) in data.batched(BATCH, partial=False):
            yield images if isinstance(images, torch.Tensor) else torch.stack(images)


def zip_batches(folder: Path) -> Iterator[torch.Tensor]:
    archive = zipfile.ZipFile(folder / "images.zip")
    names = [name for name in archive.namelist() if not name.endswith(".json")]
    rng = np.random.default_rng(0)
    images = []
    while True:
        for number in rng.permutation(len(names)):
            with archive.open(names[number]) as file:
                pixels = np.array(Image.open(file)).transpose(2, 0, 1)
            images.append(torch.from_numpy(pixels[:, :, ::-1].copy() if rng.random() < 0.5 else pixels.copy()))
            if len(images) == BATCH:
                yield torch.stack(images)
                images = []


def decoders(size: int, seconds: float) -> None:
    """Each decoder on the same 16 images, into an array or tensor of its own choice."""
    for format, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = []
        for number in range(16):
            file = io.BytesIO()
            photo(size, number).save(file, format, **options)
            data.append(file.getvalue())
        for name, decode in candidates(format, size).items():
            try:
                decode(data[0])
            except Exception as error:
                print(f"{size:>5} {format:<5} {name:<12} does not run here ({str(error).splitlines()[0][:60]})")
                continue
            count, began = 0, time.process_time()
            while (taken := time.process_time() - began) < seconds:
                decode(data[count % 16])
                count += 1
            rate = count / taken
            print(f"{size:>5} {format:<5} {name:<12} {rate:>10.0f} {rate * size * size / 1e6:>8.1f}", flush=True)


def candidates(format: str, size: int) -> dict:
    found = {"Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data), formats=(format,)))}
    if format == "JPEG":
        import simplejpeg

        out = np.empty((size, size, 3), np.uint8)
        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        try:
            import turbojpeg

            turbo = turbojpeg.TurboJPEG()
            found["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB)
        except Exception as error:  # the package is there, its library is not
            print(f"PyTurboJPEG does not run here: {str(error).splitlines()[0][:90]}")
    try:
        from torchvision import io as vision

        decode = {"JPEG": vision.decode_jpeg, "PNG": vision.decode_png, "WEBP": vision.decode_webp}[format]
        found["torchvision"] = lambda data: decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except Exception as error:
        print(f"torchvision does not run here: {str(error).splitlines()[0][:90]}")
    return found


if __name__ == "__main__":
    main()
