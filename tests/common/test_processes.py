"""The forked processes of tests/support/processes.py are what `subprocess` starts: the same streams, surroundings and ends."""

import os
import signal
import subprocess
import sys

import pytest
from support import processes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks a process that Linux lets us adopt")]

SURROUNDINGS = """
import os, random, signal, sys
import numpy as np
print(sys.argv, sys.path, __name__, os.getcwd(), sorted(os.environ.items()), os.getppid(), os.getpgid(0), os.getsid(0))
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), len(os.listdir("/proc/self/fd")), os.nice(0))
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.write_through, stream.line_buffering, stream.encoding, stream.errors, stream.seekable(), stream.newlines)
    stream.reconfigure(errors="backslashreplace")
print(sys.stdin.read())
print([name for name in sys.modules if name.split(".")[0] in ("kdpl", "dassl", "trainers", "datasets")], file=sys.stderr)
"""
ENDS = {
    "a message": ("import sys; sys.exit('error: no')", 1),
    "an exception": ("1 / 0", 1),
    "a signal": ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    "Ctrl-C": ("import os, signal; signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), 2)", -signal.SIGINT),
    "a large exit code": ("import sys; sys.exit(1027)", 3),
    "after a thread": ("import threading, time; threading.Thread(target=lambda: time.sleep(0.1) or print('late')).start()", 0),
    "after its last call": ("import atexit; atexit.register(print, 'bye'); print('hello', end='')", 0),
}


def both(*command, **options):
    """Return what a process of `subprocess` and a forked one have printed, and their exit codes."""
    options |= {"capture_output": True, "text": True, "check": False, "timeout": 60}
    done = [run([sys.executable, *command], **options) for run in (subprocess.run, processes.run)]
    return [(process.stdout, process.stderr, process.returncode) for process in done]


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_forked_process_has_the_surroundings_of_a_new_one(flags, tmp_path):
    new, forked = both(*flags, "-c", SURROUNDINGS, "a", "b c", input="typed", cwd=tmp_path, env={**os.environ, "KDPL_X": "1"})
    assert forked == new and new[2] == 0 and "('KDPL_X', '1')" in new[0] and new[1] == "[]\n"


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_as_a_new_one_does(name):
    code, status = ENDS[name]
    new, forked = both("-c", code, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert new[2] == forked[2] == status
    assert new[0] == forked[0] and new[1].splitlines()[-1:] == forked[1].splitlines()[-1:]
