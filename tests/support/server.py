"""Run command lines of Python, each in a process forked from this one, which has imported PyTorch but nothing of KDPL.

tests/support/processes.py starts this file and sends it commands through the socket whose number it is given.
"""

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import struct
import sys
import threading
import time
import types

HEAVY = (
    "numpy",
    "torch",
    "torch.distributed",
    "torch.utils.tensorboard",
    "torchvision",
    "clip",
    "open_clip",
    "tabulate",
    "PIL.Image",
)


def serve(connection: socket.socket, interrupt) -> dict:
    """Fork for every command and reply with the process id; return the command in the process that is to run it.

    That process is a grandchild whose parent has ended, so that it becomes a child of the caller, who adopts it.
    """
    while True:
        head, files, *_ = socket.recv_fds(connection, 4, 3)
        if not head:
            os._exit(0)
        request = json.loads(connection.recv(*struct.unpack("!I", head), socket.MSG_WAITALL))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            between = os.getpid()
            if os.fork():
                os.read(reader, 4)
                os._exit(0)
            settle(request, files, interrupt)
            connection.close()
            os.write(writer, struct.pack("!I", os.getpid()) * 2)  # for the process between, which then ends, and for the caller
            while os.getppid() == between:
                time.sleep(0.001)
            os.close(reader)
            os.close(writer)
            return request
        os.waitpid(child, 0)
        connection.sendall(os.read(reader, 4))
        for file in (*files, reader, writer):
            os.close(file)


def settle(request: dict, files: list[int], interrupt) -> None:
    """Give this process the streams, folder, environment, session and signals of a new one."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, interrupt)
    through = request["unbuffered"]
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old, file = getattr(sys, name), io.FileIO(number, mode, closefd=False)
        buffer = io.BufferedReader(file) if mode == "r" else file if through else io.BufferedWriter(file)
        lines = not through and (name == "stderr" or os.isatty(number))
        new = io.TextIOWrapper(buffer, old.encoding, old.errors, "\n" if mode == "w" else None, lines, through)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    sys.modules["numpy"].random.seed()
    importlib.invalidate_caches()


def run(request: dict) -> None:
    """Run `-c CODE`, `-m MODULE` or a file, with its arguments, as Python does."""
    kind, what, *args = request["command"] if request["command"][0] in ("-c", "-m") else ("", *request["command"])
    sys.argv = [kind or what, *args]
    sys.path[0] = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(os.path.realpath(what)))
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    name, code = "<string>", what
    if not kind:
        main.__file__ = name = os.path.abspath(what)
        with io.open_code(name) as file:
            code = file.read()
    exec(compile(code, name, "exec", dont_inherit=True), main.__dict__)


def status_of(request: dict) -> int:
    """Run a command line and return its exit status, having printed what ended it as Python does."""
    try:
        run(request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(status: int) -> None:
    """End as Python does, but leave all modules as they are: to take PyTorch's apart is a quarter of a second's work."""
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed stream or pipe: Python says so
        sys.exit(status)
    os._exit(status)


if __name__ == "__main__":
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for the caller
    threads = []
    for name in HEAVY:
        importlib.import_module(name)
        threads.append(len(os.listdir("/proc/self/task")))
    if max(threads) > threads[0]:  # those of numpy's OpenBLAS end at a fork, and start again when they are needed
        sys.exit(f"the imports of {HEAVY} have started threads, which a forked process would lack: {threads}")
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the children
    end(status_of(serve(socket.socket(fileno=int(sys.argv[1])), previous)))
