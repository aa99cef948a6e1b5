"""The card of a zoo that is pushed: it says how to load the zoo from the Hub, where the local card names a folder.

A README.md that the user wrote is pushed as it is; only keys that the Hub needs are added to its YAML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prepkit.errors import ZooError
from prepkit.licence import licence_of_card
from prepkit.support.files import replacing
from prepkit.zoo.card.card import MARK, PICTURE, README, card_header, card_text, picture_of
from prepkit.zoo.card.viewer import DATA_FILE, ViewerSplit, only_split
from prepkit.zoo.format.manifest import Manifest
from prepkit.zoo.read.store import LocalStore
from prepkit.zoo.read.zoo import Zoo

FENCE = "---"
CONFIGS = re.compile(r"^configs:[ \t\r]*\n(?:(?:-(?!--)|[ \t])[^\n]*\n)*", re.MULTILINE)
FILE = re.compile(r"\b(?:data_files|path): *[\"']?([^\s\"']+)")


def readme_for(
    root: Path, manifest: Manifest, repo: str, has_picture: bool, viewer: Sequence[ViewerSplit] = ()
) -> bytes:
    """Return the README.md of the repository.

    viewer: splits that have files of their own there
    raises ZooError if a README.md of the user names another licence than the zoo, or its YAML cannot be read
    """
    file = root / README
    text = _text(file) if file.is_file() else MARK
    if MARK in text:  # prepkit wrote it
        return card_text(_zoo(root, manifest), has_picture, repo, viewer).encode()
    return _with_missing_keys(text, manifest, str(file), viewer).encode()


def make_local(root: Path, manifest: Manifest) -> None:
    """Let the README.md of a zoo that was pulled name the folder's files in place of those on the Hub.

    One that cannot be read stays as it is.
    """
    file = root / README
    if not file.is_file():
        return
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    if MARK in text:
        local = card_text(_zoo(root, manifest), (root / PICTURE).is_file())
    else:
        local = _with_configs(text, card_header(manifest, only_split(manifest))["configs"])
    if local != text:
        with replacing(file, overwrite=True) as temporary:
            temporary.write_bytes(local.encode())


def picture_for(root: Path, manifest: Manifest) -> bytes | None:
    """Return card.png of the zoo, which is drawn if it is missing; None where it cannot be drawn."""
    file = root / PICTURE
    return file.read_bytes() if file.is_file() else picture_of(_zoo(root, manifest))


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # read_text would change the line ends
    except UnicodeDecodeError as error:
        raise ZooError(f"{file}: not in UTF-8: {error}.") from None


def _zoo(root: Path, manifest: Manifest) -> Zoo:
    store = LocalStore(root, manifest=manifest)  # a dry run does not write a new licence into the zoo
    return Zoo(store, None, store.manifest.shape)


def _with_missing_keys(text: str, manifest: Manifest, place: str, viewer: Sequence[ViewerSplit]) -> str:
    """Return the user's text with the keys of our header that it lacks, and with the files of this version."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    theirs = {} if block is None else _yaml(text, place)
    licence = theirs.get("license")
    if licence is not None and str(licence).lower() != licence_of_card(manifest.license)[0]:
        raise ZooError(f"{place}: its licence is {licence!r}, the zoo's is '{manifest.license}'; make them one.")
    header = card_header(manifest, viewer)
    lines = [f"{line}\n" for key, lines in header.items() if key not in theirs for line in lines]
    if "configs" in theirs:
        text = _with_configs(text, header["configs"])
        block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return "".join([f"{FENCE}\n", *lines, f"{FENCE}\n", text])
    return "".join([block[1], *lines, text[block.end(1) :]])


def _with_configs(text: str, lines: Sequence[str]) -> str:
    """Return a text whose `configs` are these lines, if the files that it names there are ones that prepkit wrote."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    match = None if block is None else CONFIGS.search(text, block.start(2), block.end())
    files = [] if match is None else FILE.findall(match[0])
    if match is None or not files or not all(map(DATA_FILE.fullmatch, files)):
        return text
    end = "\r\n" if match[0].endswith("\r\n") else "\n"
    return "".join([text[: match.start()], *(line + end for line in lines), text[match.end() :]])


def _yaml(text: str, place: str) -> dict[str, Any]:
    """Return the YAML at the head of a text."""
    from huggingface_hub import RepoCard

    try:
        return dict(RepoCard(text).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # the client may read YAML with any library
        reason = " ".join(str(error).split())
        raise ZooError(f"{place}: the YAML before the text cannot be read: {reason}") from None
