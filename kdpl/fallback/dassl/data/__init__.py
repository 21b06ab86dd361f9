"""Data sets, transforms and data loaders."""
