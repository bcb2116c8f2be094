"""Scores of the checkpoints of a run, beside its training: RUN/evaluation.jsonl.

A checkpoint's averaged generator draws samples by number (`samples.py`). A feature network (`features/`) sees them and the
real ones (`reals.py`). `metrics/` compares the features (`scores.py`). `evaluate.py` does this for one checkpoint, and
`watch.py` for those that appear while a run goes on. `record.py` has the file of results.
"""
