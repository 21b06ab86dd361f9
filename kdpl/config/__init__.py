"""Configuration: the table of keys, defaults and merging, checks, flags, the manifest of a run. Imports no PyTorch."""
