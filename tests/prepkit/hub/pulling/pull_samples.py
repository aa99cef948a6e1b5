"""What tests of pulling share."""

import torch
from command_line import prepkit
from folder_contents import files_of as contents

from prepkit.hub.selection import RECORD


def files_of(root):
    """Contents of all files in a folder, without the record of where they came from."""
    return {path: content for path, content in contents(root).items() if path != RECORD.as_posix()}


def add(hub, root, repo="me/zoo", **settings):
    return hub.add(repo, files_of(root), **settings)


def shards_with(zoo):
    """Paths of the shards that hold the instances of a view."""
    return {zoo.manifest.shards[number].path for number in zoo.table["shard"].to_pylist()}


def assert_same_instances(one, other):
    """Compare the PReps, ClassIds and rows of two zoos or views; their shards and rows may have other numbers."""
    assert torch.equal(one.preps(), other.preps())
    assert one.class_ids().tolist() == other.class_ids().tolist()
    rows, others = (zoo.table.drop_columns(["shard", "row"]).to_pylist() for zoo in (one, other))
    assert rows == others


def command(*arguments, status=0):
    return prepkit("pull", *arguments, status=status)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
