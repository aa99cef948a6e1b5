"""What tests of several experiments compute by hand."""

import torch

from netspace.experiments.result import Result


def complete(result, folder):
    """Return a result after checking that its pictures exist and that it can be saved and loaded."""
    assert all((folder / picture.file).stat().st_size > 5000 for picture in result.pictures)
    assert Result.load(result.save(folder)) == result
    return result


def accuracy_by_hand(network, task):
    images, labels = task.normalised("test")
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())
