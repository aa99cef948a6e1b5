"""Where prepkit keeps what it can fetch or compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return PREPKIT_CACHE, else `prepkit` in HF_HOME, else `prepkit` in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("PREPKIT_CACHE"):
        return Path(folder).expanduser()
    parent = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "prepkit"
