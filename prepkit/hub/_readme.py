"""The card of a zoo that is pushed: it says how to load the zoo from the Hub, where the local card names a folder.

A README.md that the user wrote is pushed as it is; only keys that the Hub needs are added to its YAML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prepkit.errors import ZooError
from prepkit.licence import licence_of_card
from prepkit.zoo.card.card import MARK, PICTURE, README, card_header, card_text, picture_of
from prepkit.zoo.format.manifest import Manifest
from prepkit.zoo.read.store import LocalStore
from prepkit.zoo.read.zoo import Zoo

FENCE = "---"


def readme_for(root: Path, manifest: Manifest, repo: str, has_picture: bool) -> bytes:
    """Return the README.md of the repository.

    raises ZooError if a README.md of the user names another licence than the zoo, or its YAML cannot be read
    """
    file = root / README
    text = _text(file) if file.is_file() else MARK
    if MARK in text:  # prepkit wrote it
        return card_text(_zoo(root, manifest), has_picture, repo).encode()
    return _with_missing_keys(text, manifest, str(file)).encode()


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
    store = LocalStore(root)
    store.manifest = manifest  # a dry run does not write a new licence into the zoo
    return Zoo(store, None, store.manifest.shape)


def _with_missing_keys(text: str, manifest: Manifest, place: str) -> str:
    """Return the user's text with the keys of our header that it lacks."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    theirs = {} if block is None else _yaml(text, place)
    licence = theirs.get("license")
    if licence is not None and str(licence).lower() != licence_of_card(manifest.license)[0]:
        raise ZooError(f"{place}: its licence is {licence!r}, the zoo's is '{manifest.license}'; make them one.")
    lines = [f"{line}\n" for key, lines in card_header(manifest).items() if key not in theirs for line in lines]
    if block is None:
        return "".join([f"{FENCE}\n", *lines, f"{FENCE}\n", text])
    return "".join([block[1], *lines, text[block.end(1) :]])


def _yaml(text: str, place: str) -> dict[str, Any]:
    """Return the YAML at the head of a text."""
    from huggingface_hub import RepoCard

    try:
        return dict(RepoCard(text).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # the client may read YAML with any library
        reason = " ".join(str(error).split())
        raise ZooError(f"{place}: the YAML before the text cannot be read: {reason}") from None
