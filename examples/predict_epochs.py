"""Predict the weights that networks have three epochs later, from those of their last three epochs.

    python examples/digits_zoo.py digits-zoo
    python examples/predict_epochs.py digits-zoo

Later weights are guessed as the last ones plus a share of each of the last two steps. The two shares are found by least
squares on runs of `train`; how good the guess is, is told by runs of `test`: by their weights and by what they answer.
"""

import torch
from digits import digits
from digits_zoo import NETWORK
from learning import given_zoo

import prepkit

AHEAD = 3


def windows(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States `[R, E, H, W]` -> last states `[M, H, W]`, two steps before them `[M, 2, H, W]`, states to be guessed."""
    steps = states[:, 1:] - states[:, :-1]
    last, before = states[:, 2:-AHEAD], torch.stack([steps[:, 1:-AHEAD], steps[:, : -AHEAD - 1]], 2)
    return last.flatten(0, 1), before.flatten(0, 1), states[:, 2 + AHEAD :].flatten(0, 1)


zoo = given_zoo(__doc__)
last, steps, later = windows(zoo.split("train").runs().preps())
inputs = steps.transpose(0, 1).flatten(1).T  # one row for each value of each network
shares = torch.linalg.lstsq(inputs, (later - last).view(-1, 1)).solution
last, steps, later = windows(zoo.split("test").runs().preps())
guessed = last + torch.einsum("mshw,s->mhw", steps, shares[:, 0])

_, _, images, labels = digits()
print(f"shares of the last two steps: {shares[0].item():.2f} and {shares[1].item():.2f}, on {len(last)} test windows")
for name, preps in {"no change": last, "guessed": guessed, "trained": later}.items():
    right = prepkit.run_instances(NETWORK, preps, images.flatten(1)).argmax(2) == labels
    print(f"{name}: distance {(preps - later).norm(dim=(1, 2)).mean():.3f}, accuracy {right.float().mean():.3f}")
