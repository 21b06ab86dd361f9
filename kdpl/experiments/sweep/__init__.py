"""Sweeps: many runs described by one YAML file, on this machine or on a cluster (docs/sweeps.md)."""
