"""Train and evaluate prompt learners from the command line, with the flags of CoOp and its forks."""

import sys

from kdpl.train import main

if __name__ == "__main__":
    sys.exit(main())
