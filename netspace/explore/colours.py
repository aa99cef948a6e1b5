"""Colours of all pictures: one for each idea, so that it means the same in every picture of a page.

Signed weights and differences have a scale of their own, from blue below 0 to red above; `prepkit.figures` draws it.
"""

from __future__ import annotations

TARGET = "#222222"
PREDICTED = "#1f77b4"  # what the space writes, also along a line of embeddings, and what is read from an embedding
WEIGHTS = "#ff7f0e"  # what comes from the weights themselves, without a space
WEIGHTS_REDUCED = "#c98a4b"  # from few numbers that stand for the weights
STATISTICS = "#00897b"  # from statistics of the layers
CONSENSUS = "#2ca02c"  # what the neighbours of an instance have in common
MISTAKE = "#c2185b"  # a predicted ClassId that is not the one that was asked for
NEUTRAL = "0.6"  # what the others are compared with

# Architectures; no colour of another idea is among them.
_ARCHITECTURES = ("#9467bd", "#17becf", "#bcbd22", "#8c564b", "#e377c2", "#5c6bc0", "#455a64", "#d4a017")


def of_architecture(class_id: int) -> str:
    """Return the colour of an architecture; after eight ClassIds they come again."""
    return _ARCHITECTURES[class_id % len(_ARCHITECTURES)]
