"""What a card says of the weights that instances begin with, where they are not a random draw of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prepkit.errors import counted
from prepkit.support.markdown import one_line

APART = "Instances of one start have weights near each other: this is another kind of zoo than one of own starts."


def sentences_on_starts(provenance: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each architecture whose instances share starts, and what follows; none for other zoos."""
    starts = provenance.get("starts")
    if not isinstance(starts, Mapping):
        return []
    said = [_sentence(name, own) for name, own in starts.items() if isinstance(own, Mapping) and own]
    return [one_line(" ".join([*said, APART]))] if said else []


def _sentence(name: str, own: Mapping[str, Any]) -> str:
    start, facts = next(iter(own.items()))
    about = facts if isinstance(facts, Mapping) else {}
    if start == "fitted":
        items, steps = counted(about.get("items", 0), "training instance"), counted(about.get("steps", 0), "step")
        what = f"one network that was fitted in {steps} to the items of all {items} at once, and to no others"
    elif start == "file":
        what = f"the weights in the file {about.get('file')}"
    else:
        what = counted(len(own), "random start") + (", dealt out" if len(own) > 1 else ", the same for all")
    return f"Instances of {name} begin with {what}."
