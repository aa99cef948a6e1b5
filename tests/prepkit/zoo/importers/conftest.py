"""Importing without drawing: the picture of a card takes four fifths of the time in which a small zoo is imported."""

import pytest

from prepkit.zoo.card import card


@pytest.fixture(autouse=True)
def undrawn_cards(monkeypatch):
    monkeypatch.setattr(card, "picture_of", lambda zoo: None)
