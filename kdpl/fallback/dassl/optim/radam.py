"""RAdam as in its authors' code (arXiv:1908.03265), which Dassl has: with decoupled weight decay."""

from functools import partial

from torch import optim

RAdam = partial(optim.RAdam, decoupled_weight_decay=True)
