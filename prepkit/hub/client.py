"""Calls of the Hub's client.

HF_ENDPOINT says where the Hub is, HF_HUB_CACHE or HF_HOME where its cache lies; they are read at each call.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, utils

from prepkit.address import HubAddress
from prepkit.hub._failures import is_busy, retried
from prepkit.support.progress import without_bars_of
from prepkit.version import __version__

COMMIT = re.compile(r"[0-9a-f]{40}")


def api(token: str | None = None) -> HfApi:
    """Return the Hub's client; without a token it takes HF_TOKEN, or that of `hf auth login`."""
    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="prepkit", library_version=__version__
    )


def hub_cache_folder() -> Path:
    """Return the folder of the Hub's own cache."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def pinned(client: HfApi, address: HubAddress, repo_type: str) -> HubAddress:
    """Return the address with the commit that its branch or tag, or the main branch, stands for now.

    A commit needs no request. Where the Hub cannot be reached, its cache may know the commit.
    """
    if address.revision is not None and COMMIT.fullmatch(address.revision):
        return address
    revision = retried(
        lambda: client.resolve_revision(
            address.repo_id, repo_type=repo_type, revision=address.revision, cache_dir=hub_cache_folder()
        ),
        may_pass=is_busy,
    )
    return replace(address, revision=revision.resolved)


def quiet() -> AbstractContextManager[None]:
    """Switch the client's own progress bars off."""
    return without_bars_of(utils)
