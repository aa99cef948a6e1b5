"""Zoos that tests train, and what is told of their training."""

import pytest
from killed_training import spec

import prepkit
from prepkit.support.progress import Progress
from prepkit.training.run import train_zoo
from prepkit.zoo.card import card


def trained(folder, text, **options):
    """Train a zoo whose card gets no picture, since drawing one takes as long as the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "picture_of", lambda zoo: None)
        return train_zoo(spec(text), folder, **{"device": "cpu", "threads": 1, **options})


def rows_of(folder):
    return prepkit.open_zoo(folder).table.to_pylist()


class Notes(Progress):
    def __init__(self):
        self.notes, self.texts, self.done, self.work = [], [], 0.0, None

    def begin(self, total, done=0.0, text=""):
        self.work, self.done = total, done
        self.texts.append(text)

    def advance(self, amount, text=None):
        self.done += amount
        self.texts += [] if text is None else [text]

    def say(self, text):
        self.notes.append(text)


def stopped(units):
    raise KeyboardInterrupt
