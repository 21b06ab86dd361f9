"""The configuration: defaults, merging, choices, checks and the flags of the command line. Needs no PyTorch."""
