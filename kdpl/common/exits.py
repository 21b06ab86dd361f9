"""Exit codes, for scripts and schedulers, and the one way in which commands print an error."""

import errno
import os
import sys
import traceback

FAILED = 1  # an unexpected error
BAD_INPUT = 2  # the command, the configuration or a file is wrong; the error names it
DIVERGED = 3  # the loss became NaN or infinite
OCCUPIED = 4  # another run writes to the output folder
SOME_UNREAD = 5  # predict.py left out unreadable images; all others have their predictions
INTERRUPTED = 75  # stopped by a signal, a training after saving: the same command resumes (EX_TEMPFAIL of sysexits.h)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "What was there before is untouched. Make room on the disk, or raise the quota or the file-size limit."


def report(error: Exception, status: int) -> int:
    """Print an error as one message, with the traceback if KDPL_DEBUG is set, and return the exit status.

    That is `status`, but FAILED for a disk without room, and the error's own `exit_status` if it has one.
    """
    if os.environ.get("KDPL_DEBUG"):
        traceback.print_exc()
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        message = f"'{error.filename}': {error.strerror}"
    if getattr(error, "errno", None) in NO_ROOM:  # the command was right
        status, message = FAILED, f"{message}. {MAKE_ROOM}"
    if "Original Traceback" in message:  # raised in a data-loader worker: its own message is at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print(f"error: {message}", file=sys.stderr, flush=True)
    return getattr(error, "exit_status", status)
