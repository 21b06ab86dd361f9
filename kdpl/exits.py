"""Exit codes of a run, so that scripts and schedulers know what to do next."""

FAILED = 1  # an unexpected error
BAD_INPUT = 2  # the command, the configuration or a file: an error names it
DIVERGED = 3  # the loss became NaN or infinite
OCCUPIED = 4  # another run writes to the output folder
SOME_UNREAD = 5  # of predict.py: images could not be read and were left out; all others have their predictions
INTERRUPTED = 75  # stopped by SIGTERM or SIGUSR1 after saving: the same command goes on (EX_TEMPFAIL of sysexits.h)
