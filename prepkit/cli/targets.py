"""Names of the files that commands write, and checks of them before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import OutputError

if TYPE_CHECKING:
    from prepkit.address import HubAddress

PREP_SUFFIX = ".prep.safetensors"
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")


def prep_targets(models: Sequence[Path | HubAddress], output: Path | None) -> list[Path]:
    """Return the PRep file for each model; all are different; see `make_folder_of` for those of several models.

    raises OutputError
    """
    is_folder = output is not None and os.path.isdir(output)  # Path.is_dir raises for a name that is too long
    if output is not None and len(models) == 1 and not is_folder and not output.suffix and _is_missing(output):
        raise OutputError(
            f"-o '{output}' has no suffix and is no folder; name the file, '{output}{PREP_SUFFIX}', or make the folder."
        )
    if output is not None and len(models) == 1 and not is_folder:
        return [output]
    if output is not None and not is_folder and os.path.exists(output):
        raise OutputError(f"-o '{output}' is a file; name a folder for {len(models)} models.")
    targets = [(output or Path()) / f"{_name_of(model)}{PREP_SUFFIX}" for model in models]
    shared = {str(target) for target in targets if targets.count(target) > 1}
    if shared:
        raise OutputError(f"two models would both become {min(shared)}; pack them one at a time with -o.")
    return targets


def _is_missing(path: Path) -> bool:
    """Whether there is nothing at a path; not so for a name that the system refuses, which is said when it is used."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def make_folder_of(targets: Sequence[Path]) -> None:
    """Make the folder for several results if it is missing; raises OutputError if it cannot be made."""
    folder = targets[0].parent
    if len(targets) > 1 and not folder.exists():
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(
                f"-o '{folder}' must be a folder for {len(targets)} models, and cannot be made: {error.strerror}."
            ) from None


def check_target(target: Path, sources: Iterable[Path | HubAddress], force: bool) -> None:
    """Raise OutputError if a result could not be written, or would replace its source."""
    from prepkit.support.files import check_writable

    if target.resolve() in {source.resolve() for source in sources if isinstance(source, Path)}:
        raise OutputError(f"'{target}' is the file to be read; name another one for the result.")
    check_writable(target, overwrite=force)


def check_page(target: Path, force: bool) -> None:
    """Raise OutputError if a page could not be written, or browsers would not take the file for a page by its name."""
    from prepkit.support.files import check_writable

    if target.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"'{target}': a page is an HTML file; use a name that ends in .html.")
    check_writable(target, overwrite=force)


def stem(path: Path) -> str:
    """Return `model` for model.pt, model.prep.safetensors, model.safetensors.index.json and the folder model."""
    if os.path.isdir(path):
        return path.resolve().name
    suffixes = (PREP_SUFFIX, *INDEX_SUFFIXES)
    suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def _name_of(model: Path | HubAddress) -> str:
    """Return the file's stem, or the name of the repository if an address has no path."""
    if isinstance(model, Path):
        return stem(model)
    return stem(Path(model.path)) if model.path else model.repo_id.rpartition("/")[2]
