"""Checkpoints of other projects as folders of runs.

    machine.py     reads the opcodes of a pickle, in which nothing can be called
    values.py      the inert values that it makes, and which names it knows
    containers.py  files: pickles, and what torch.save writes, old and new
    modules.py     names of tensors and attributes in a tree of modules
    foreign.py     what a format tells of its networks, and the tensors under the names of ours
    nvidia.py, stylegan3.py, tensorflow.py, rosinality.py, r3gan.py   one file for each format
    run.py         writes the folder
    commands.py    the verb `import`
"""
