"""Which weights an instance starts with and which are kept, where a spec says more than the usual."""

from dataclasses import replace

import pytest
import torch
from stack_samples import Noise, alone_by_epoch, jobs, setting, trained, training
from torch import nn
from torch.nn.functional import cross_entropy

import prepkit
from prepkit.training._stack import fresh_tensors
from prepkit.training._values import Keep


def test_of_some_epochs_the_best_weights_in_validation_are_kept() -> None:
    """As above, of every second epoch after the second and of the last one; an instance may end before all of them."""
    own = training(keep=Keep("best_validation", after=2, judged_every=2))
    all_jobs = [replace(job, learning_rate=0.3) for job in jobs("resnet8@digits", 3, epochs=(7, 5, 2))]
    candidates = {7: [4, 6, 7], 5: [4, 5], 2: [2]}
    images, labels = Noise().batch(77, 0, 0)
    for shot in trained(setting("resnet8@digits", own), all_jobs).snapshots:
        job = all_jobs[shot.position]
        scores = {}
        for epoch, state in enumerate(alone_by_epoch(own, job), 1):
            network = prepkit.architecture(job.architecture).build().double().eval()
            network.load_state_dict(state)
            outputs = network(images)
            accuracy = (outputs.argmax(1) == labels).double().mean().item()
            scores[epoch] = (accuracy, -cross_entropy(outputs, labels).item())
        assert shot.epoch == max(candidates[job.epochs], key=scores.__getitem__)


def test_a_shorter_training_judges_as_early_in_proportion() -> None:
    keep = Keep("best_validation", after=200, judged_every=10)
    assert keep.scaled(1 / 10, 30) == Keep("best_validation", after=20, judged_every=1)
    assert [epoch for epoch in (1,) if keep.scaled(1 / 300, 1).judges(epoch, 1)] == [1]
    assert Keep("trajectory", 10).scaled(1 / 10, 3) == Keep("trajectory", 3)


@pytest.mark.parametrize("name", ["resnet8@digits", "lenet_like@digits"])
def test_convolutions_start_kaiming_normal_over_their_outputs(name: str) -> None:
    """By torchvision's own loop over a network that is built from the same seed."""
    own = training(initialisation="kaiming_fan_out")
    learning, _ = fresh_tensors(setting(name, own), [7, 8])
    for row, seed in enumerate((7, 8)):
        torch.manual_seed(seed)
        network = prepkit.architecture(name).build()
        before = {key: value.clone() for key, value in network.named_parameters()}
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                outputs, _, height, width = module.weight.shape
                with torch.no_grad():
                    module.weight.normal_(0, (2 / (outputs * height * width)) ** 0.5)
        changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
        assert changed == {key for key, value in before.items() if value.dim() == 4}
        for key, value in network.named_parameters():
            assert torch.equal(learning[key][row], value.double()), key
