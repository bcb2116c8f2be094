"""The only place that knows Accelerate, DeepSpeed and torch.distributed.

Accelerate launches the processes and makes the process group (engine.py); its configuration file chooses what
moves the gradients (choice.py). The loop asks the engine for three things: to agree with the other ranks
(ranks.py), to let a network learn from the losses of a phase (learner.py: data parallel in data_parallel.py,
DeepSpeed in zero.py), and for the state of that network by parameter name, however it is spread.
"""

from stylegan_dist.training.engine.engine import Engine
from stylegan_dist.training.engine.learner import Job, Learner, PhaseResult, Sharded, assemble
from stylegan_dist.training.engine.ranks import ALONE, Ranks

__all__ = ["ALONE", "Engine", "Job", "Learner", "PhaseResult", "Ranks", "Sharded", "assemble"]
