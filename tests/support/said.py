"""A progress that keeps what it is told."""

from prepkit.support.progress import Progress


class Said(Progress):
    """Keeps all texts."""

    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)
