"""A training's batches, schedule, progress and checkpoints, without Dassl."""
