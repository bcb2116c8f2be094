"""The verb `doctor`: whether training would start on this machine, and if not, why, and what to do.

A check is a function that yields findings. All of them run in child processes with time limits (`asking.py`, `child.py`), so
that a driver, a mount or a library that hangs or crashes costs one line. The process that prints imports the modules of the
checks. They import PyTorch and what needs it in their functions, so that a PyTorch that does not load is a finding, too.
"""
