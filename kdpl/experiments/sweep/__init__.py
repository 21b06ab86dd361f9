"""Sweeps: many runs from a YAML file or from flags, on this machine or on a cluster (docs/performance.md)."""
