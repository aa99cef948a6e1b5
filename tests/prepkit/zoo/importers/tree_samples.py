"""Runs of ray with checkpoints and their tables, and how tests import them."""

import json

import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main

PATTERN = "{run}/checkpoint_{epoch:int}/checkpoints"

ON = {"epoch": "training_iteration"}


def tensors(value):
    return {"a.weight": torch.full((4, 3), float(value)), "a.bias": torch.zeros(4)}


def command(*arguments, status=0, stdin=None):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)], input=stdin)
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def save(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(value), file)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(zoo):
    """The rows of a zoo by id, without the zoo's own columns; each row's weights are checked to be its own."""
    opened = prepkit.open_zoo(zoo)
    own = ("id", "architecture", "class_id", "split", "shard", "row", "source_sha256")
    rows = {}
    for index, row in enumerate(opened.table.to_pylist()):
        rows[row["id"]] = {name: value for name, value in row.items() if name not in own}
        rows[row["id"]]["weight"] = float(opened.preps([index]).max())
    return rows
