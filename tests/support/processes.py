"""Processes of Python command lines that start in milliseconds: `Popen` and `run` of subprocess, but forked from a warm Python.

A new Python needs three seconds to import PyTorch. Here, tests/support/server.py has done so and forks for every command. The
process is otherwise a new one: it imports KDPL itself, and has the streams, folder, environment, arguments, session, exit code
and parent that subprocess would give it. Some variables are read while PyTorch is imported: each environment has a server.
"""

import atexit
import ctypes
import inspect
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SET_CHILD_SUBREAPER = 36
LATER = ("KDPL_", "PYTEST_", "MASTER_")  # nothing that the server imports reads variables of these names
LATER_NAMES = {"PYTHONUNBUFFERED", "COLUMNS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
MOST = 3
_one_at_a_time = threading.Lock()  # a server answers one request after the other
_servers: dict[tuple, tuple[subprocess.Popen, socket.socket]] = {}


def _server(env: dict[str, str]) -> socket.socket:
    """Return the connection to the server of an environment; start it, and end the one that was not used for longest."""
    key = tuple(sorted((k, v) for k, v in env.items() if not k.startswith(LATER) and k not in LATER_NAMES))
    if key not in _servers:
        while len(_servers) >= MOST:
            _end(next(iter(_servers)))
        here, there = socket.socketpair()
        command = [sys.executable, str(Path(__file__).with_name("server.py")), str(there.fileno())]
        _servers[key] = (subprocess.Popen(command, pass_fds=[there.fileno()], env=env, stdin=subprocess.DEVNULL), here)
        there.close()
    _servers[key] = _servers.pop(key)
    return _servers[key][1]


def _end(key: tuple) -> None:
    process, connection = _servers.pop(key)
    connection.close()
    process.wait()


@atexit.register
def _end_all() -> None:
    for key in list(_servers):
        _end(key)


class Popen(subprocess.Popen):
    """A process of a Python command line: `[sys.executable, (-u), -m MODULE | -c CODE | FILE, ...]`."""

    def _execute_child(self, *args):
        with _one_at_a_time:
            self._fork(*args)

    def _fork(self, *args):
        given = inspect.signature(super()._execute_child).bind(*args).arguments
        python, *command = map(os.fspath, given["args"])
        unbuffered = command[:1] == ["-u"]
        command = command[unbuffered:]
        if python != sys.executable or not command or (command[0].startswith("-") and command[0] not in ("-c", "-m")):
            raise ValueError(f"{given['args']}: expected [sys.executable, -m MODULE, -c CODE or FILE, ...]; use subprocess.")
        env = dict(os.environ if given["env"] is None else given["env"])
        request = {
            "command": command,
            "cwd": os.path.abspath(given["cwd"] or "."),
            "env": env,
            "session": given["start_new_session"],
            "unbuffered": unbuffered or bool(env.get("PYTHONUNBUFFERED")),
        }
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        files = [number if pipe == -1 else pipe for number, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        connection, text = _server(env), json.dumps(request).encode()
        libc = ctypes.CDLL(None)
        libc.prctl(SET_CHILD_SUBREAPER, 1)  # the process is an orphan for a moment: this one adopts it
        try:
            socket.send_fds(connection, [struct.pack("!I", len(text))], files)
            connection.sendall(text)
            reply = connection.recv(4)
        except OSError:
            reply = b""
        finally:
            libc.prctl(SET_CHILD_SUBREAPER, 0)
            self._close_pipe_fds(*pipes)
        if not reply:
            raise RuntimeError("The server of forked processes has ended; it says on standard error why.")
        (self.pid,) = struct.unpack("!I", reply)
        self._child_created = True


def run(
    command: list, *, input=None, timeout=None, check=False, capture_output=False, **options
) -> subprocess.CompletedProcess:
    """Run a Python command line to its end, as `subprocess.run`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(list(map(str, command)), **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
