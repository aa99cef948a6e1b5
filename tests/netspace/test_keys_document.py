"""docs/keys.md is what the code generates, so it cannot fall behind the keys that are read."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "keys.py"


def test_the_document_of_keys_is_up_to_date():
    document = SCRIPT.with_suffix(".md").read_text(encoding="utf-8")
    assert document == runpy.run_path(str(SCRIPT))["text"](), "run `python docs/keys.py`"
    for line in (
        "| `batch_size` | a whole number of at least 1 | required | samples a step: images, or points of a shape |",
        "| `momentum` | a number from 0 to below 1, or {low, high, scale} | `0` | (sgd) momentum |",
        "| `clip` | a number above 0 |  | largest norm of all gradients together; no limit if missing |",
        "### `[task.split]`",
    ):
        assert line in document
