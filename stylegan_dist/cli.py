"""The command line: `stylegan-dist <verb>`. Each verb parses its arguments and calls one function."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from stylegan_dist import __version__
from stylegan_dist.arguments import CELLS, MANY, add_verb, add_which, pair, path, real, whole, word
from stylegan_dist.config import describe, load_config
from stylegan_dist.doctor.commands import add_doctor
from stylegan_dist.environment import usable_environment
from stylegan_dist.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Diverged,
    InputError,
    Interrupted,
    LocalInputError,
    LocalInterrupted,
    RankLost,
)
from stylegan_dist.last_word import leave_last_word, say_line
from stylegan_dist.machine import name_the_user
from stylegan_dist.outcome import leave_outcome, outcome_is_wanted
from stylegan_dist.paths import user_path
from stylegan_dist.ranges import Range
from stylegan_dist.redact import redact

SECONDS_TO_SPEAK = 10  # by which the rank that prints an error may be later than the others


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 75 interrupted and resumable."""
    parser = argparse.ArgumentParser(
        prog="stylegan-dist",
        description="Train StyleGAN-class GANs on any number of GPUs, exactly and resumably.",
        epilog="exit codes: 0 finished, 2 wrong configuration or input, 75 interrupted and resumable, 1 anything else",
    )
    parser.add_argument("--version", action="version", version=f"stylegan-dist {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    try:
        with usable_environment():  # before libraries load: that of Intel ends the process where the working folder is gone
            if list(sys.argv[1:] if argv is None else argv)[:1] == ["doctor"]:
                add_doctor(verbs)
            else:
                _add_verbs(verbs)
            return _run(parser, argv)
    except InputError as error:  # the environment cannot be made usable
        _say_error(error)
        return EXIT_BAD_INPUT


def _add_verbs(verbs: argparse._SubParsersAction) -> None:
    """Imported here is what needs PyTorch and NumPy: where they do not load, `doctor` must be able to say so."""
    from stylegan_dist.cluster.commands import add_runs, add_stop, add_submit
    from stylegan_dist.clusters.commands import add_label
    from stylegan_dist.editing.commands import add_edit
    from stylegan_dist.encoders.commands import add_train_encoder
    from stylegan_dist.evaluation.commands import add_evaluate
    from stylegan_dist.export.commands import add_export
    from stylegan_dist.features.commands import add_train_features
    from stylegan_dist.importing.commands import add_import
    from stylegan_dist.latents.commands import add_project
    from stylegan_dist.making.commands import add_index, add_pack, add_verify
    from stylegan_dist.report.commands import add_report
    from stylegan_dist.tools.data_commands import add_bench_data, add_peek
    from stylegan_dist.tools.draw_commands import add_augment_dataset
    from stylegan_dist.view.commands import add_view

    add_pack(verbs)
    add_index(verbs)
    add_verify(verbs)
    add_label(verbs)
    add_peek(verbs)
    add_bench_data(verbs)
    _add_train(verbs)
    add_submit(verbs)
    add_runs(verbs)
    add_stop(verbs)
    add_evaluate(verbs)
    add_report(verbs)
    _add_generate(verbs)
    add_project(verbs)
    add_edit(verbs)
    add_view(verbs)
    add_export(verbs)
    add_import(verbs)
    add_augment_dataset(verbs)
    add_train_features(verbs)
    add_train_encoder(verbs)
    add_doctor(verbs)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    trains = False
    try:
        args, rest = parser.parse_known_args(argv)
        if not hasattr(args, "overrides") or any(word.startswith("-") for word in rest):
            parser.parse_args(argv)  # complains about what is left over
        else:
            args.overrides += rest  # overrides may stand behind options, too
        trains = args.run is _train
        return args.run(args)
    except InputError as error:
        # Ranks fail together with the same error. One line is enough on each machine, which may have a log of its own.
        first_here = "0" in (os.environ.get("RANK") or "0", os.environ.get("LOCAL_RANK"))
        if first_here or not trains or isinstance(error, LocalInputError):
            _say_error(error)
        else:  # a launcher kills all when the first ends, which must not happen before the error is printed
            time.sleep(SECONDS_TO_SPEAK)
        return EXIT_BAD_INPUT
    except RankLost as error:
        _say_error(error)
        return EXIT_FAILURE
    except Interrupted as stop:
        if not stop.shown:
            say_line(str(stop))
        alone = isinstance(stop, LocalInterrupted)
        if alone or (os.environ.get("RANK") or "0") == "0":  # rank 0 alone knows what is wanted then
            leave_outcome(f"stopped {stop.then}", str(stop))  # type: ignore[arg-type]
        if outcome_is_wanted() and not alone:  # a launcher would report any other code as a failure
            return EXIT_OK
        leave_last_word(str(stop))
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        say_line("interrupted")
        leave_last_word("interrupted")
        return 130
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        leave_outcome("failed", f"{type(error).__name__}: {first}")
        leave_last_word(f"error: {type(error).__name__}: {first} (its traceback is further up)")
        raise


def _say_error(error: Exception) -> None:
    line = redact(f"error: {error}")
    leave_outcome("diverged" if isinstance(error, Diverged) else "failed", str(error))
    say_line(line)
    leave_last_word(line)


def _add_train(verbs: argparse._SubParsersAction) -> None:
    parser = add_verb(
        verbs, "train", _train,
        help="train a generator, or continue a run",
        description="Train from a preset and overrides. Running the same command again continues the run in run.dir.\n"
        "In one process; start several with `accelerate launch launch/train.py ...`, same arguments.",
        epilog="examples:\n"
        "  stylegan-dist train launch/presets/auto.yaml data.shards=data/photos run.dir=runs/photos\n"
        "  stylegan-dist train launch/presets/ffhq256.yaml data.shards=data/ffhq loss.r1_gamma=2 --dry-run\n"
        "  accelerate launch --config_file launch/accelerate/8gpu.yaml launch/train.py launch/presets/ffhq256.yaml "
        "data.shards=data/ffhq",
    )
    parser.add_argument("preset", nargs="?", help="YAML file, for example launch/presets/auto.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, for example run.batch=32")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan, and stop")
    parser.add_argument("--help-config", action="store_true", help="list all configuration keys and stop")


def _train(args: argparse.Namespace) -> int:
    if args.help_config:
        for key, default, doc in describe():
            print(f"{key:<32} {default:<16} {doc}")
        return EXIT_OK
    if args.preset and "=" in args.preset:  # only overrides were given
        args.preset, args.overrides = None, [args.preset, *args.overrides]
    config = load_config(args.preset and user_path(args.preset, "the preset", url=False), args.overrides)
    name_the_user()  # after all `~` of paths are expanded
    if args.dry_run:
        from stylegan_dist.engine.launch_check import check_numbers, number_of
        from stylegan_dist.training.plan import describe_plan

        check_numbers(os.environ)
        promised = config.run.world_size
        world_size = number_of(os.environ, "WORLD_SIZE", 1) if promised == "auto" else promised
        if (os.environ.get("RANK") or "0") == "0":
            print(describe_plan(config, world_size))
        return EXIT_OK
    from stylegan_dist.evaluation.event import evaluation_events  # slow to import, and not needed for the other verbs
    from stylegan_dist.training.loop import train

    train(config, evaluation_events)
    leave_outcome("finished")
    return EXIT_OK


def _add_generate(verbs: argparse._SubParsersAction) -> None:
    parser = add_verb(
        verbs, "generate", _generate,
        help="draw pictures with a trained generator",
        description="Draw pictures with the averaged generator of a checkpoint. Each is computed alone, so\n"
        "that the pixels of a seed depend on the seed, the class, the truncation and the noise, on one machine with one\n"
        "PyTorch and the same --ops and --device, and on nothing else.\n"
        "After training on arrays these are written too (.npy), and sounds (.wav) if they are log-mel spectrograms.\n"
        "After training on text there is one file of lines, lines.txt, in place of pictures of each.\n"
        "After training on clips, clips are written, as animated WebP.",
        epilog="examples:\n  stylegan-dist generate runs/demo --seeds 0-63 --trunc 0.7 --class 3 --out pictures\n"
        "  stylegan-dist generate runs/video --seeds 0-7 --frames 200 --speed 0.5 --out films",
    )
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", default="0-63", help="for example 0-63 or 1,5,10-12 (default: %(default)s)")
    seeds.add_argument("--count", type=whole("--count", Range(1, 1_000_000)), metavar="N", help="as --seeds 0-(N - 1)")
    parser.add_argument("--trunc", type=real("--trunc", Range(-1000, 1000)), default=1.0, metavar="PSI",
                        help="truncation: below 1 gives better and less varied pictures (default: %(default)s)")
    parser.add_argument("--translate", type=pair("--translate", Range(-1000, 1000)), default=(0.0, 0.0), metavar="X,Y",
                        help="stylegan3: move the content by so many widths to the right and down")
    parser.add_argument("--rotate", type=real("--rotate", Range(-1e6, 1e6)), default=0.0, metavar="DEGREES",
                        help="stylegan3: rotate the content counter-clockwise about the middle")
    parser.add_argument("--class", dest="label", type=whole("--class", Range(0, MANY.most)), metavar="C",
                        help="class number (default: all in turn)")
    parser.add_argument("--frames", type=whole("--frames", Range(2, 10_000)), metavar="N",
                        help="stylegan_v: of each clip (default: as many as those of the data)")
    parser.add_argument("--speed", type=real("--speed", Range(above=0, most=100)), default=1.0, metavar="X",
                        help="stylegan_v: 0.5 takes twice as many frames for the same motion (default: %(default)s)")
    add_which(parser)
    parser.add_argument("--noise", choices=["const", "none"], default="const", help="layer noise (default: %(default)s)")
    parser.add_argument("--columns", type=whole("--columns", CELLS), default=8,
                        help="columns of the grid (default: %(default)s)")
    parser.add_argument("--device", type=word("--device"), help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--ops", choices=["reference", "fused"], default="reference",
                        help="fused: the native operators, faster on CPUs, compiled at their first use; pixels differ in few "
                        "places by one level (default: %(default)s)")
    parser.add_argument("--out", type=path("--out"), required=True, help="folder for the files and grid.png")


def _generate(args: argparse.Namespace) -> int:
    import torch

    from stylegan_dist.tools.generate import GenerateOptions, generate, parse_seeds

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    seeds = parse_seeds(args.seeds) if args.count is None else list(range(args.count))
    options = GenerateOptions(seeds, args.trunc, args.label, args.noise, device, args.columns,
                              args.which or "newest", args.translate, args.rotate, args.ops, args.frames, args.speed)
    print(generate(args.run_dir, args.out, options))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
