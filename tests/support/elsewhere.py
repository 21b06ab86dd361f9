"""Code in a process that believes to be on another machine: with a home, caches and a network of its own."""

import json
import subprocess
import sys
from pathlib import Path

from support import processes

MOVE = """
import json, os, sys
os.environ.update(json.loads(sys.argv.pop(1)))
for name in [name for name in sys.modules if name.split(".")[0] in ("huggingface_hub", "open_clip", "clip")]:
    del sys.modules[name]
"""


def run_elsewhere(code: str, home: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    """Run code with other variables of the environment, by the server of this one: another would have to be started.

    huggingface_hub reads its variables while it is imported: it and what has taken something from it are imported again.
    """
    moved = json.dumps({"HOME": str(home), "HF_HOME": str(home / "hf"), **env})
    command = [sys.executable, "-c", MOVE + code, moved, *args]
    return processes.run(command, capture_output=True, text=True, timeout=200)
