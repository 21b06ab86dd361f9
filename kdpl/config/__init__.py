"""Configuration: defaults, merging, choices, checks and command-line flags. Imports no PyTorch."""
