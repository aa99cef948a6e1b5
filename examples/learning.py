"""What the examples of learners share: a plain training, and a report on networks of runs that it has not seen."""

import sys

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import prepkit


def given_zoo(usage: str) -> prepkit.Zoo:
    """Return the zoo that the command line names; end with what is wrong, or with the usage, if there is none."""
    try:
        return prepkit.open_zoo(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(usage)
    except prepkit.PrepkitError as error:
        sys.exit(str(error))


def learn(learner: nn.Module, zoo: prepkit.Zoo, view: prepkit.views.View, epochs: int, rate: float) -> None:
    """Train a learner, which makes predictions `[N]` of a view, to tell the accuracy of networks; then report."""
    train, test = zoo.split("train"), zoo.split("test")
    optimiser = torch.optim.Adam(learner.parameters(), lr=rate)
    loader = train.loader(64, view=view, columns=["accuracy"], seed=0)
    for _ in range(epochs):
        for values, _, _, columns in loader:
            optimiser.zero_grad()
            nn.functional.mse_loss(learner(values), columns["accuracy"]).backward()
            optimiser.step()
    with torch.no_grad():
        report(view.name, learner.eval()(view(test.preps())), zoo)


def report(what: str, predicted: Tensor, zoo: prepkit.Zoo) -> None:
    """Print the mean absolute error of accuracies predicted for `test`, and that of the mean of `train`; draw both."""
    test = zoo.split("test")
    truth = torch.tensor(test.table["accuracy"].to_pylist())
    constant = torch.tensor(zoo.split("train").table["accuracy"].to_pylist()).mean()
    errors = [(truth - answer).abs().mean().item() for answer in (predicted, constant)]
    print(f"{what}: mean absolute error of the accuracy {errors[0]:.3f}, of a constant {errors[1]:.3f}")
    plt.rcParams["font.size"] = 12
    axes = plt.figure(figsize=(4.2, 4.2), layout="constrained").add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--")
    axes.axhline(constant, color="tab:orange")
    axes.text(0.01, constant + 0.01, f"a constant: {errors[1]:.3f}", va="bottom", color="tab:orange")
    axes.scatter(truth, predicted, s=12)
    axes.set(xlim=(0, 1), ylim=(-0.2, 1.3), title=f"{what}: mean error {errors[0]:.3f}")
    axes.set(xlabel="accuracy on test images", ylabel="predicted accuracy")
    axes.figure.savefig(f"learn_{what}.png", dpi=100)
    plt.close(axes.figure)
    print(f"on {len(test)} networks of {len(test.runs())} runs that were not learned from")
