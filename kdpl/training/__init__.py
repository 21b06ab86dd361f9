"""Batches, schedule, progress and checkpoints of a training, without Dassl."""
