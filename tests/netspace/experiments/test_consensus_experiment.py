"""Consensus: predictions, and what they agree with, are compared a second time by hand."""

from dataclasses import replace

import pytest
import torch
from experiment_samples import complete
from small_zoos import DIGITS

import prepkit
from netspace.experiments.beyond import consensus
from netspace.space.prediction import predict

pytestmark = pytest.mark.usefixtures("one_thread")


def test_consensus(ready):
    subject = ready("digits_single")
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(consensus.run(subject), subject.folder)
    space, test, train = run.space(), zoo.split("test"), zoo.split("train")
    images, labels = task.normalised("test")
    agreed, right = [], []
    with torch.no_grad():
        for row in range(len(test)):
            latent = space.encode(test.preps([row]))
            predicted = predict(space, latent, run.registry).network(0)(images).argmax(1)
            far = [float((space.encode(train.preps([other])) - latent).norm()) for other in range(len(train))]
            nearest = sorted(range(len(train)), key=far.__getitem__)[:3]
            answer = sum(train.network(other)(images) for other in nearest).argmax(1)
            agreed.append((answer == predicted).double().mean())
            right.append((answer == labels).double().mean())
    numbers = found.numbers["consensus of 3"]
    assert numbers["agrees_with_prediction"] == pytest.approx(float(sum(agreed) / len(agreed)))
    assert numbers["accuracy"] == pytest.approx(float(sum(right) / len(right)))
    assert found.numbers["predicted"]["agrees_with_prediction"] == 1.0
    assert consensus.MEAN_OF_EPOCHS not in found.numbers, "the zoo says nothing of epochs"


def test_consensus_of_the_same_epochs(ready, tmp_path):
    torch.manual_seed(1)
    epochs = {"train": (1, 2, 3, 4, 9, 20, 80), "test": (2, 40, 1), "validation": (5,)}
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        for split, numbers in epochs.items():
            for row, number in enumerate(numbers):
                network = prepkit.architecture("resnet8@digits").build()
                writer.add(network, id=f"{split}-{row}", split=split, epochs=number)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    subject = replace(ready("digits_single"), zoo=zoo)
    task = subject.task
    found = complete(consensus.run(subject), subject.folder)
    images, labels = task.normalised("test")
    train, test = zoo.split("train"), zoo.split("test")
    outputs = [train.network(row)(images).detach() for row in range(7)]
    accuracies = [float((one.argmax(1) == labels).double().mean()) for one in outputs]
    truth = [float((test.network(row)(images).argmax(1) == labels).double().mean()) for row in range(3)]
    nearest = [(0, 1, 2, 3, 4), (2, 3, 4, 5, 6), (0, 1, 2, 3, 4)]  # by the ratio of their epochs
    guesses = [sum(accuracies[row] for row in rows) / 5 for rows in nearest]
    answers = [sum(outputs[row] for row in rows).argmax(1) for rows in nearest]
    together = [float((one == labels).double().mean()) for one in answers]
    for kind, expected in ((consensus.MEAN_OF_EPOCHS, guesses), (consensus.CONSENSUS_OF_EPOCHS, together)):
        numbers = found.numbers[kind]
        assert numbers["accuracy"] == pytest.approx(sum(expected) / 3)
        apart = sum(abs(a - b) for a, b in zip(expected, truth, strict=True)) / 3
        assert numbers["accuracy_from_target"] == pytest.approx(apart)
    assert "agrees_with_prediction" not in found.numbers[consensus.MEAN_OF_EPOCHS]
    assert "epochs it was trained for" in found.text
