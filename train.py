"""Train and evaluate prompt learners from the command line, with the flags of CoOp and its forks."""

import sys

from kdpl.common.command import run_command
from kdpl.train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
