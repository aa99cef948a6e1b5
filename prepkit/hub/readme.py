"""The card of a zoo that is pushed: it tells how to load the zoo from the Hub, where the local one names a folder.

A README.md of the user's own goes as it is, with the keys in its YAML that the Hub needs and it does not have.
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
    """The README.md of the repository.

    raises ZooError if the user's own names another licence than the zoo, or its YAML cannot be read
    """
    file = root / README
    own = _text(file) if file.is_file() else MARK
    if MARK in own:
        return card_text(_zoo(root, manifest), has_picture, repo).encode()
    return _completed(own, manifest, str(file)).encode()


def picture_for(root: Path, manifest: Manifest) -> bytes | None:
    """card.png of the zoo, drawn if it is not there; None where it cannot be."""
    file = root / PICTURE
    return file.read_bytes() if file.is_file() else picture_of(_zoo(root, manifest))


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # with the line ends that it has
    except UnicodeDecodeError as error:
        raise ZooError(f"{file}: not in UTF-8: {error}.") from None


def _zoo(root: Path, manifest: Manifest) -> Zoo:
    store = LocalStore(root)
    store.manifest = manifest  # in a dry run its licence may be one that is not written yet
    return Zoo(store, None, store.manifest.shape)


def _completed(text: str, manifest: Manifest, place: str) -> str:
    """The user's own text with the keys of our header that it lacks."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    theirs = {} if block is None else _yaml(text, place)
    said = theirs.get("license")
    if said is not None and str(said).lower() != licence_of_card(manifest.license)[0]:
        raise ZooError(f"{place}: its licence is {said!r}, the zoo's is '{manifest.license}'; make them one.")
    lines = [f"{line}\n" for key, lines in card_header(manifest).items() if key not in theirs for line in lines]
    if block is None:
        return "".join([f"{FENCE}\n", *lines, f"{FENCE}\n", text])
    return "".join([block[1], *lines, text[block.end(1) :]])


def _yaml(text: str, place: str) -> dict[str, Any]:
    """The YAML before a text."""
    from huggingface_hub import RepoCard

    try:
        return dict(RepoCard(text).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # of whatever reads YAML there
        reason = " ".join(str(error).split())
        raise ZooError(f"{place}: the YAML before the text cannot be read: {reason}") from None
