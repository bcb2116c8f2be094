"""The verb `evaluate` of the command line."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from stylegan_dist.arguments import MANY, SEEDS, add_verb, add_which, path, whole, word
from stylegan_dist.errors import EXIT_BAD_INPUT, EXIT_OK, InputError

_EXAMPLES = """\
examples:
  stylegan-dist evaluate runs/faces                        # the newest checkpoint
  stylegan-dist evaluate runs/faces --all                  # all that have no scores yet; then which is the best
  stylegan-dist evaluate runs/faces --watch                # beside a training, until that has ended
  stylegan-dist evaluate runs/faces --network inception --metrics fid,kid,pr
  accelerate launch --config_file launch/accelerate/8gpu.yaml launch/evaluate.py runs/faces

Results are in RUN/evaluation.jsonl. The checkpoint with the best score is kept, however old it becomes.
"""


def add_evaluate(verbs) -> None:
    """Add the verb `evaluate` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "evaluate", _evaluate,
        help="score checkpoints against the data", epilog=_EXAMPLES,
        description="Score the averaged generator of checkpoints against real samples: Fréchet distance, kernel distance,\n"
        "precision and recall. Samples are drawn by number, so that a score is the same on any number of GPUs.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    add_which(parser)
    parser.add_argument("--all", action="store_true", help="all checkpoints that have no scores yet")
    parser.add_argument("--watch", action="store_true", help="as --all, and go on with new ones until the run has ended")
    parser.add_argument("--metrics", type=word("--metrics"), metavar="NAMES",
                        help="some of fid, kid, pr, is, infinity, accuracy, classes, ppl, eq_t, eq_t_frac, eq_r, and of those "
                        "that the kind of the data has; the first decides which checkpoint is the best (default: "
                        "evaluate.metrics of the run; auto: those of the kind, or fid,kid,pr where it has none)")
    parser.add_argument("--network", type=word("--network"), metavar="NAME",
                        help="efficientnet-lite0, inception, dinov2-s, dinov2-l, clip, or the folder of one made with "
                        "train-features (default: evaluate.network of the run, efficientnet-lite0)")
    parser.add_argument("--count", type=whole("--count", MANY), metavar="N",
                        help="samples drawn, and real ones at most (default: evaluate.count of the run, 50000)")
    parser.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help="of the samples (default: %(default)s)")
    parser.add_argument("--shards", type=path("--shards"), help="real samples (default: those of the run)")
    parser.add_argument("--device", type=word("--device"), default="auto", help="cpu or cuda (default: cuda if there is one)")


def _evaluate(args: argparse.Namespace) -> int:
    from stylegan_dist.config.schema import RunConfig
    from stylegan_dist.engine import Engine
    from stylegan_dist.evaluation.evaluate import EvaluateOptions, Evaluator, describe
    from stylegan_dist.evaluation.forward import forward_results
    from stylegan_dist.evaluation.record import Evaluation, alone
    from stylegan_dist.evaluation.watch import watch
    from stylegan_dist.training.run_folder import read_run_config
    from stylegan_dist.training.snapshot import find_checkpoint

    options = EvaluateOptions(args.network, args.count, args.seed, args.metrics and args.metrics.split(","),
                              args.shards or "")
    run_dir, ranks = Path(args.run_dir), Engine(RunConfig(device=args.device))

    def say(text: str) -> None:
        if ranks.is_main:
            print(text, flush=True)

    def tell(found: Evaluation) -> None:
        say(describe(found))

    def choose() -> list[int]:
        """The checkpoints that are to be scored; tells what is known already of the one that was asked for."""
        if args.all:
            return evaluator.unscored()
        nimg = find_checkpoint(run_dir, args.which or "newest")
        if known := evaluator.known(nimg):
            say(f"{describe(known)}   (known before)")
        return [] if known else [nimg]

    failed = False
    with contextlib.ExitStack() as held:
        ranks.on_main(lambda: read_run_config(run_dir))  # before a file is made there
        ranks.on_main(lambda: held.enter_context(alone(run_dir)))
        evaluator = Evaluator(run_dir, options, ranks, say, decides=args.all or args.watch)
        if args.watch:
            say(f"watching {run_dir}: each new checkpoint is scored, with {evaluator.count:,} samples, until the run has ended")
            watch(evaluator, tell)
        else:
            for nimg in ranks.broadcast(ranks.on_main(choose)):
                try:
                    if found := evaluator.evaluate(nimg):
                        tell(found)
                except InputError as error:
                    if not args.all:
                        raise
                    failed = True
                    say(f"WARNING: the checkpoint at {nimg} images is passed over: {error}")
        if best := ranks.on_main(evaluator.best):
            say(best)
        ranks.on_main(lambda: forward_results(run_dir, say))
    ranks.close()
    return EXIT_BAD_INPUT if failed else EXIT_OK
