"""Packaging. A setup.py, because the optional native operators will be built from here."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (HERE / "stylegan_dist/__init__.py").read_text().splitlines() if "__version__" in line
)

setup(
    name="stylegan-dist",
    version=VERSION,
    description="Distributed training of StyleGAN-class GANs, exact under any number of GPUs and interruptions",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["stylegan_dist", "stylegan_dist.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "accelerate>=1.10,<2",
        "webdataset>=1.0,<2",
        "wandb>=0.22,<1",
        "pillow>=11,<14",
        "simplejpeg>=1.8,<2",
        "numpy>=1.26,<3",
        "pyyaml>=6,<7",
        "safetensors>=0.5,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.19.8,<0.20"],
        "metrics": ["scipy>=1.11,<2"],
        "demo": ["scikit-learn>=1.4,<2"],
        "test": ["pytest>=8,<10", "pytest-timeout>=2.3,<3", "hypothesis>=6.100,<7", "ruff>=0.12,<1", "mypy>=1.15,<3",
                 "scikit-learn>=1.4,<2", "deepspeed>=0.19.8,<0.20"],
    },
    entry_points={"console_scripts": ["stylegan-dist=stylegan_dist.cli:main"]},
)
