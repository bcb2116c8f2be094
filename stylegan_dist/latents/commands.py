"""The verb `project` of the command line."""

from __future__ import annotations

import argparse

from stylegan_dist.arguments import MANY, SEEDS, add_verb, add_which, path, real, whole, word
from stylegan_dist.errors import EXIT_OK, InputError
from stylegan_dist.ranges import Range

_EXAMPLES = """\
examples:
  stylegan-dist project face.jpg --run runs/faces                    # the latent w whose picture is nearest
  stylegan-dist project photos/ --run runs/faces --space w+          # nearer, and less typical of what the run makes
  stylegan-dist project face.jpg --run runs/faces --tune             # the generator is tuned, too: projections/tuned
  stylegan-dist project torn.png --run runs/faces --mask hole.png    # white is missing; projections/torn.png is completed
  stylegan-dist project a.png --run runs/digits --class 3 --features data/digits-features

OUT gets NAME.safetensors (latents, noise maps, class, checkpoint, scores), NAME.png, and strip.png with all of them.
The result for an image depends on the image, the run and the options, not on the other images.
"""


def add_project(verbs) -> None:
    """Add the verb `project` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "project", _project,
        help="find the latents of images, or complete images", epilog=_EXAMPLES,
        description="Find the latents with which the averaged generator of a run makes given images.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=path("IMAGE"),
                        help="image files, or folders of them; brought into the form of the run as pack does")
    parser.add_argument("--run", dest="run_dir", metavar="RUN", type=path("--run"), required=True, help="folder of the run")
    parser.add_argument("--out", type=path("--out"), default="projections", metavar="DIR", help="(default: %(default)s)")
    add_which(parser)
    search = parser.add_argument_group("search")
    search.add_argument("--space", choices=["w", "w+"],
                        help="w: one latent for the whole network; w+: one for each place, from the middle of the steps on "
                        "(default: w, with a mask w+)")
    search.add_argument("--steps", type=whole("--steps", Range(1, 1_000_000)), default=1000, help="(default: %(default)s)")
    search.add_argument("--class", dest="label", type=word("--class"), default="all", metavar="K",
                        help="of all images; all: try every class and keep the best; none: start from the mean of all "
                        "(default: %(default)s)")
    search.add_argument("--starts", type=whole("--starts", Range(1, 100_000)), metavar="N",
                        help="try N drawn starts as well (default: none); with a mask: N drawn samples are compared with what "
                        "is known, the mean latent of those that agree is the start (default: 2000)")
    search.add_argument("--features", type=word("--features"), default="discriminator", metavar="NAME",
                        help="of the loss, beside pixels: discriminator (of the run), none, efficientnet-lite0, inception, "
                        "dinov2-s, dinov2-l, clip, or the folder of one made with train-features (default: %(default)s)")
    search.add_argument("--feature-weight", type=real("--feature-weight", Range(0, 1e6)), metavar="X",
                        help="of the features in the loss (default: 0.1)")
    search.add_argument("--noise", choices=["const", "fit"], default="const",
                        help="const: the fixed noise maps; fit: maps are searched for, too, and saved (default: %(default)s)")
    search.add_argument("--pull", type=real("--pull", Range(0, 1e6)), metavar="X",
                        help="weight of the squared distance from the mean latent (default: 0; with a mask 0.01)")
    search.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help="of all draws (default: %(default)s)")
    missing = parser.add_argument_group("images of which a part is missing")
    missing.add_argument("--mask", type=path("--mask"), metavar="PNG",
                         help="a picture that is white where all images miss something")
    missing.add_argument("--mask-box", type=word("--mask-box"), metavar="X,Y,W,H", help="or a rectangle, in pixels of the run")
    missing.add_argument("--feather", type=whole("--feather", Range(0, 1024)), default=0, metavar="PIXELS",
                         help="around the hole, over which known pixels are mixed with generated ones (default: %(default)s, "
                         "known pixels stay as they are)")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--tune", action="store_true",
                        help="tune the weights of the generator to all images given; DIR/tuned is a run for other tools then")
    tuning.add_argument("--tune-steps", type=whole("--tune-steps", Range(1, 1_000_000)), metavar="N", help="(default: 350)")
    computing = parser.add_argument_group("computing")
    computing.add_argument("--batch", type=whole("--batch", MANY), default=8, metavar="N",
                           help="images computed at once (default: %(default)s)")
    computing.add_argument("--device", type=word("--device"), help="cpu or cuda (default: cuda if there is one)")
    computing.add_argument("--ops", choices=["reference", "fused"], default="reference", help="as of generate")


def _project(args: argparse.Namespace) -> int:
    from stylegan_dist.latents.project import FEATURE_WEIGHT, ProjectOptions, project
    from stylegan_dist.latents.tuning import STEPS

    if args.feather and args.mask is None and args.mask_box is None:
        raise InputError("--feather mixes pixels around a hole: give --mask or --mask-box, too")
    if args.tune_steps is not None and not args.tune:
        raise InputError("--tune-steps are steps of tuning: give --tune, too")

    label = None
    if args.label not in ("all", "none"):
        if not args.label.isdecimal() or len(args.label) > 18:
            raise InputError(f"--class must be a class number, all or none, not {args.label[:40]!r}")
        label = int(args.label)
    weight = FEATURE_WEIGHT if args.feature_weight is None else args.feature_weight
    options = ProjectOptions(
        args.space, args.steps, label, args.label == "all", args.starts, args.features, weight, args.noise, args.pull,
        args.seed, args.batch, args.mask, args.mask_box, args.feather, args.tune, args.tune_steps or STEPS, args.device,
        args.which, args.ops)
    found = project(args.images, args.run_dir, args.out, options)
    network = args.features if args.features != "none" else "no network"
    width = max(len(one.target.name) for one in found)
    hole = found[0].hole is not None
    print(f"{'image':<{width}}  class  PSNR dB  distance" + "  hole dB" * hole + f"    features: {network}")
    for one in found:
        print(f"{one.target.name:<{width}}  {'-' if one.label is None else one.label!s:>5}  {one.psnr:7.2f}  "
              + (f"{one.distance:8.4f}" if one.distance is not None else f"{'-':>8}")
              + (f"  {one.hole:7.2f}" if one.hole is not None else ""))
    print(args.out)
    return EXIT_OK
