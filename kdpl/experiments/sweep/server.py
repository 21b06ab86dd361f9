"""Imported by the server that warm processes fork from: a signal to stop is for the runs, not for it.

Without the server no exit status reaches the sweep, which would take a finished run for a failed one. `timeout`, Slurm and a
terminal that is closed signal all processes at once. Blocked signals wait; each run takes them as soon as it unblocks them.
"""

import signal

from kdpl.common.signals import SIGNALS

signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
