"""How many samples a second does one core read, decode and batch, and in how much memory?

    python benchmarks/readers.py                     # all of it, about half an hour
    python benchmarks/readers.py --sizes 256 --formats jpg --images photos.zip
    python benchmarks/readers.py --only decoders     # where other decoders are installed, a few minutes

In one run, over the same images: our stream; plain `webdataset` over the same shards, with a shuffle of 1000 and its
own decoding into uint8 (its cheapest) or float (what the examples of its documentation train on); a reader of
an uncompressed zip in the layout of NVIDIA's dataset tool that decodes with Pillow; and, as the floor, our decoders
alone, from memory into one image. None of them flips images, as is the default; a row of its own shows what flips cost
our stream. Each is a process of its own without reader processes, so that its CPU time is that of one core; samples a second
are per second of CPU time, which other work on the machine disturbs least. The readers take turns, and a row is the median of
its turns; ratios are medians of those of each turn. The files are in the page cache.
Then the decoders alone, which take turns as well, and the memory of our stream over 200,000 samples.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.kinds.decoding import decode_into
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

BATCH = 32
SIZES = (32, 256, 1024)
FORMATS = ("jpg", "png", "webp")
PARTS = ("readers", "decoders", "memory")
GROWTH_SAMPLES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS, help="(default: all)")
    parser.add_argument("--images", type=Path, help="a folder or zip to pack (default: made images, about as hard as photos)")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time of each reader (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each reader (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="(default: all)")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        reader, folder, size = args.serve
        serve(reader, Path(folder), int(size))
        return
    names = ("torch", "numpy", "pillow", "simplejpeg", "imagecodecs", "webdataset", *PACKAGES)
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores, Python {platform.python_version()},",
          ", ".join(f"{name} {version_of(name)}" for name in names))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sets = list(itertools.product(args.sizes, args.formats))
        if "readers" in args.only:
            print("\n| pixels | format | kB | reader | samples/s | ours is | peak MiB |\n|---|---|---|---|---|---|---|")
            for size, encoding in sets:
                compare(make(root, size, encoding, args.images), size, args.seconds, args.rounds)
        if "decoders" in args.only:
            print("\n| pixels | format | decoder | images/s | MPix/s | ours is |\n|---|---|---|---|---|---|")
            for size, encoding in sets:
                decoders(make(root, size, encoding, args.images), size, args.seconds / args.rounds, args.rounds)
        if "memory" in args.only:
            with Reader("ours", make(root, 32, "jpg", None), 32) as reader:
                _, _, early = reader.turn(0, least=GROWTH_SAMPLES // 10)
                _, peak, late = reader.turn(0, least=GROWTH_SAMPLES * 9 // 10)
            print(f"\nmemory over {GROWTH_SAMPLES} samples: {late - early:+.2f} MiB from the 20,000th on, peak {peak:.0f} MiB")


def compare(folder: Path, size: int, seconds: float, rounds: int) -> None:
    """The rows of one set."""
    with ExitStack() as stack:
        readers = {name: stack.enter_context(Reader(name, folder, size)) for name in READERS}
        turns = [{name: reader.turn(seconds / rounds) for name, reader in readers.items()} for _ in range(rounds)]
    index = load_index(folder)
    kilobytes = sum(int(load_offsets(shard)[:, 1].sum()) for shard in index.shards) / index.num_samples / 1e3
    for reader in READERS:
        rate = np.median([turn[reader][0] for turn in turns])
        ratio = np.median([turn["ours"][0] / turn[reader][0] for turn in turns])
        peak = max(turn[reader][1] for turn in turns)
        print(f"| {size} | {index.encoding} | {kilobytes:.1f} | {reader} | {rate:.0f} | {ratio:.2f}x | {peak:.0f} |",
              flush=True)


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not here"


def images_of(size: int) -> int:
    """How many are made: 4096 of 32 pixels, 1024 of 256, 96 of 1024."""
    return min(4096, max(96, 2**26 // size**2))


def photo(size: int, number: int) -> Image.Image:
    """A picture whose amplitudes fall with frequency as those of photos do, colours less than brightness; an edge; noise.

    As hard to compress as photos (bytes a pixel): at 32, 64, 128, 256 and 1024 pixels 1.5, 0.8, 0.6, 0.4 and 0.3 as JPEG,
    2.3, 2.0, 1.7, 1.5 and 1.2 as PNG; see the file of results.
    """
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    spectrum = np.fft.rfft2(rng.normal(size=(3, size, size))) * np.maximum(frequency, 1) ** -1.7
    spectrum[:, 0, 0] = 0
    planes = np.fft.irfft2(spectrum, (size, size))
    light, red, blue = planes / planes.std((1, 2), keepdims=True) * np.array([50, 12.5, 12.5])[:, None, None]
    pixels = 128 + np.stack([light + red, light - (red + blue) / 2, light + blue], -1)
    pixels[size // 4:size // 2, size // 3:] *= 0.5
    return Image.fromarray((pixels + rng.normal(0, 1, pixels.shape)).clip(0, 255).astype(np.uint8))


def make(root: Path, size: int, encoding: str, images: Path | None) -> Path:
    """Shards, and a zip of the same encoded images."""
    folder = root / f"{encoding}-{size}"
    if folder.exists():
        return folder
    source = images or root / f"images-{size}"
    if not source.exists():
        source.mkdir()
        for number in range(images_of(size)):
            photo(size, number % 256).save(source / f"{number:05d}.png", compress_level=1)
    pack(source, folder, PackOptions(ImageOptions(size, encoding=encoding), labels="none",
                                     samples_per_shard=max(images_of(size) // 8, 1)))
    import webdataset

    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        samples = webdataset.WebDataset(shards_of(folder), shardshuffle=False)
        for number, sample in enumerate(samples):
            archive.writestr(f"{number // 1000:05d}/img{number:08d}.{encoding}", sample[encoding])
    return folder


def shards_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar"))


class Reader:
    """A process with one of the readers, which waits for its turns."""

    def __init__(self, name: str, folder: Path, size: int):
        command = [sys.executable, __file__, "--serve", name, str(folder), str(size)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turn(0, least=1)  # it has started, and read for a while, before the next one starts

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def turn(self, seconds: float, least: int = 0) -> list[float]:
        """Samples per second of CPU time, peak memory and present memory in MiB."""
        print(seconds, least, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def serve(reader: str, folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    batches = READERS[reader](folder)
    for _ in range(max(4, min(2000, images_of(size)) // BATCH)):
        assert len(next(batches)) == BATCH
    for line in sys.stdin:
        seconds, least = map(float, line.split())
        count, began = 0, time.process_time()
        while (taken := time.process_time() - began) < seconds or count < least:
            next(batches)
            count += BATCH
        print(json.dumps([count / taken, memory("VmHWM"), memory("VmRSS")]), flush=True)


def memory(field: str) -> float:
    """MiB. Not from getrusage, whose peak knows that of the process that has started this one."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def our_batches(folder: Path, mirror: bool = False) -> Iterator[torch.Tensor]:
    for batch in BatchStream(load_index(folder), StreamPlan(0, 64, 4096, BATCH, mirror=mirror)):
        yield batch["sample"]


def webdataset_batches(folder: Path, decode: str) -> Iterator[torch.Tensor]:
    import webdataset

    encoding = folder.name.partition("-")[0]
    data = webdataset.WebDataset(shards_of(folder), shardshuffle=100).shuffle(1000).decode(decode).to_tuple(encoding)
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
            images.append(torch.from_numpy(pixels))
            if len(images) == BATCH:
                yield torch.stack(images)
                images = []


def decoding_alone(folder: Path) -> Iterator[torch.Tensor]:
    index = load_index(folder)
    data = encoded(folder, 256)
    image = np.empty((index.resolution, index.resolution, index.channels), np.uint8)
    batch = torch.empty(BATCH, 0)
    for begin in itertools.count(0, BATCH):
        for number in range(begin, begin + BATCH):
            decode_into(data[number % len(data)], image)
        yield batch


READERS = {
    "ours": our_batches,
    "ours, with flips": partial(our_batches, mirror=True),
    "webdataset, uint8": partial(webdataset_batches, decode="torchrgb8"),
    "webdataset, float": partial(webdataset_batches, decode="torchrgb"),
    "zip and Pillow": zip_batches,
    "decoding alone": decoding_alone,
}


def encoded(folder: Path, count: int) -> list[bytes]:
    reader = ShardReader(load_index(folder))
    order = itertools.product(range(len(reader.index.shards)), range(min(shard.samples for shard in reader.index.shards)))
    return [reader.read(*place)[0] for place in itertools.islice(order, count)]


def decoders(folder: Path, size: int, seconds: float, rounds: int) -> None:
    """Each decoder on the same 16 images, into an array of ours if it can, else into one of its own."""
    data = encoded(folder, 16)
    format = folder.name.partition("-")[0]
    out = np.empty((size, size, 3), np.uint8)
    pillow = np.asarray(Image.open(io.BytesIO(data[0])))
    running = {}
    for name, module, how in DECODERS:
        if format not in how:
            continue
        try:
            decode = partial(how[format], importlib.import_module(module))
            result = decode(data[0], out)
        except Exception as error:  # not installed, or its library is not
            print(f"| {size} | {format} | {name} | does not run here: {str(error).splitlines()[0][:60]} | | |")
            continue
        same = np.array_equal(out if result is None else result, pillow)
        running[name + ("" if same else " (other pixels)")] = decode
    turns = [{name: rate(decode, data, out, seconds) for name, decode in running.items()} for _ in range(rounds)]
    for name in running:
        images = np.median([turn[name] for turn in turns])
        ratio = np.median([turn["ours"] / turn[name] for turn in turns])
        print(f"| {size} | {format} | {name} | {images:.0f} | {images * size * size / 1e6:.1f} | {ratio:.2f}x |", flush=True)


def rate(decode: Callable, data: list[bytes], out: np.ndarray, seconds: float) -> float:
    """Images a second of CPU time."""
    count, began = 0, time.process_time()
    while (taken := time.process_time() - began) < seconds:
        decode(data[count % len(data)], out)
        count += 1
    return count / taken


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _array(image: torch.Tensor) -> np.ndarray:
    return image.numpy().transpose(1, 2, 0)


# (name, module, {format: how}); all but the first where they are installed.
DECODERS = (
    ("ours", "stylegan_dist.kinds.decoding", dict.fromkeys(FORMATS, lambda it, data, out: it.decode_into(data, out))),
    ("Pillow", "PIL.Image", dict.fromkeys(FORMATS, lambda it, data, out: np.asarray(it.open(io.BytesIO(data))))),
    ("torchvision", "torchvision.io", {
        "jpg": lambda it, data, out: _array(it.decode_jpeg(_tensor(data))),
        "png": lambda it, data, out: _array(it.decode_png(_tensor(data))),
        "webp": lambda it, data, out: _array(it.decode_webp(_tensor(data)))}),
    ("torchcodec", "torchcodec.decoders", {
        "jpg": lambda it, data, out: _array(it.decode_jpeg(data)),
        "png": lambda it, data, out: _array(it.decode_png(data)),
        "webp": lambda it, data, out: _array(it.decode_webp(data))}),
    ("OpenCV", "cv2", dict.fromkeys(
        FORMATS, lambda it, data, out: it.imdecode(np.frombuffer(data, np.uint8), it.IMREAD_COLOR_RGB))),
    ("simplejpeg, fast DCT", "simplejpeg",
     {"jpg": lambda it, data, out: it.decode_jpeg(data, "RGB", buffer=out, fastdct=True, fastupsample=True)}),
    ("PyTurboJPEG", "turbojpeg", {"jpg": lambda it, data, out: it.TurboJPEG().decode(data, pixel_format=it.TJPF_RGB)}),
    ("imagecodecs", "imagecodecs", {"jpg": lambda it, data, out: it.jpeg8_decode(data, out=out)}),
    ("libspng (imagecodecs)", "imagecodecs", {"png": lambda it, data, out: it.spng_decode(data, out=out)}),
    ("libspng (pyspng)", "pyspng", {"png": lambda it, data, out: it.load(data)}),
)
PACKAGES = ("opencv-python-headless", "pyspng", "PyTurboJPEG", "torchcodec", "torchvision")


if __name__ == "__main__":
    main()
