"""KDPL in a fork of CoOp: the three changes to its `train.py`, and trials of its trainers on the embedded benchmark."""
