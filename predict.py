"""Name what is on images with learned prompts, from the command line."""

import sys

from kdpl.common.command import run_command
from kdpl.predict import main

if __name__ == "__main__":
    sys.exit(run_command(main))
