"""Name what is on images with learned prompts, from the command line."""

import sys

from kdpl.predict import main

if __name__ == "__main__":
    sys.exit(main())
