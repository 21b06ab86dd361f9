"""Where KDPL keeps what it can make again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: $KDPL_CACHE if set, else ~/.cache/kdpl. It need not exist yet."""
    return Path(os.environ.get("KDPL_CACHE") or "~/.cache/kdpl").expanduser()
