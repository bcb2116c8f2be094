"""What makes networks learn on the ranks of a run. No other folder knows Accelerate or DeepSpeed.

Accelerate launches the processes and makes the process group (engine.py). Its configuration file chooses what
moves the gradients (choice.py). The engine extends the interface of the ranks (`stylegan_dist/ranks.py`). It lets a
network learn from the losses of a phase (learner.py: data parallel in data_parallel.py, DeepSpeed in zero.py). It
gives the state of that network by parameter name, however it is spread.
"""

from stylegan_dist.engine.engine import Engine
from stylegan_dist.engine.learner import Job, Learner, PhaseResult

__all__ = ["Engine", "Job", "Learner", "PhaseResult"]
