"""The verb `train-encoder` of the command line."""

from __future__ import annotations

import argparse

from stylegan_dist.arguments import add_training, add_verb, path, places, training_of, whole
from stylegan_dist.errors import EXIT_OK
from stylegan_dist.kinds.autoencoder import MAX_LATENT_CHANNELS
from stylegan_dist.ranges import Range

_EXAMPLES = """\
examples:
  stylegan-dist pack photos shards/photos --resolution 256
  stylegan-dist train-encoder shards/photos --out encoders/photos --downscale 8 --device cuda
  stylegan-dist pack photos shards/latents --resolution 256 --encode encoders/photos

When: a GAN shall be trained on latents, and no published autoencoder is at hand, or none suits the pictures.

What it is: a small convolutional autoencoder with the structure and the file layout of an AutoencoderKL. It is trained on
your pictures alone, with the mean absolute error and a slight weight of the divergence. A tenth of the pictures (10,000 at
most, drawn by their numbers) is held out. The PSNR of their reconstructions is told at the end, and
OUT/reconstructions.png shows some.

What it is not: a published autoencoder. Those were trained on millions of pictures, with perceptual and adversarial losses,
and give sharper pictures. Give the folder of one (config.json and diffusion_pytorch_model.safetensors) to pack --encode.

Keep OUT: only it can decode its latents. The same command on one machine makes the same files, to the last bit.
"""


def add_train_encoder(subparsers) -> None:
    """Add the verb `train-encoder` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "train-encoder", _run,
        help="train a small autoencoder on your own pictures, whose latents a GAN can be trained on", epilog=_EXAMPLES,
        description="Train a small autoencoder on the pictures of a shard set. `pack --encode OUT` makes latents with it.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=places("SHARDS"), help="a shard set of images, as of training")
    parser.add_argument("--out", metavar="OUT", type=path("--out"), required=True, help="new folder for the autoencoder")
    parser.add_argument("--downscale", type=int, choices=(2, 4, 8, 16), default=4,
                        help="pixels of a picture to one of a latent, along a side (default: %(default)s)")
    parser.add_argument("--latent-channels", type=whole("--latent-channels", Range(1, MAX_LATENT_CHANNELS)), default=4,
                        help="channels of a latent (default: %(default)s)")
    parser.add_argument("--width", type=int, choices=(8, 16, 32, 64, 128), default=16,
                        help="channels at the finest level; each coarser one has twice as many, up to 8 times (default: "
                             "%(default)s, for a CPU)")
    add_training(parser, "pictures", 100, "the first weights, the order, the draws, and what is held out")


def _run(args: argparse.Namespace) -> int:
    from stylegan_dist.encoders.training import EncoderOptions, train_encoder

    options = EncoderOptions(args.downscale, args.latent_channels, args.width, *training_of(args))
    record = train_encoder(args.shards, args.out, options)
    print(f"{args.out}: PSNR {record.psnr:.2f} dB of {record.judged} held-out pictures")
    return EXIT_OK
