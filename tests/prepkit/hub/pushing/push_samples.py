"""What tests of pushing share."""

from command_line import prepkit

from prepkit.zoo.card.card import PICTURE, README
from prepkit.zoo.format.manifest import read_manifest


def command(*arguments, status=0):
    return prepkit("push", *arguments, status=status)


def content_of(root):
    """Contents of a zoo's files, without the card."""
    manifest = read_manifest(root)
    paths = [shard.path for shard in manifest.shards] + [manifest.table.path, "zoo.json"]
    paths += [manifest.teacher.path] if manifest.teacher else []
    return {path: (root / path).read_bytes() for path in paths}


def without_card(files):
    """Leave out what a push adds to a zoo; the tests of the viewer read its copies of the table."""
    added = (README, PICTURE, ".gitattributes")
    return {path: content for path, content in files.items() if path not in added and not path.startswith("viewer/")}
