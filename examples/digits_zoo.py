"""Make the zoo that the other examples learn from: 64 small networks on handwritten digits, after each of 8 epochs.

    python examples/digits_zoo.py digits-zoo                  # seconds on a CPU; nothing is downloaded

Runs 48 to 63 are the split `test`: no example learns from any of their epochs.
"""

import sys

import torch
from digits import digits
from torch.nn.functional import cross_entropy

import prepkit

RUNS, TRAIN_RUNS, EPOCHS, BATCH = 64, 48, 8, 100
LAYERS = [["linear", "hidden", {"in_features": 64, "out_features": 16}], "relu"]
LAYERS += [["linear", "output", {"in_features": 16, "out_features": 10}]]
CHAIN = "prepkit.families.layer_chain:LayerChain"
NETWORK = prepkit.Architecture("mlp@digits", "mlp", (64,), CHAIN, {"layers": LAYERS}, {})


def make_zoo(path: str) -> None:
    """Train all networks at once, each at a learning rate of its own, and write them after each epoch."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    layout = NETWORK.layout
    networks = [layout.pack(NETWORK.build().state_dict(), layout.shape(width=64)) for _ in range(RUNS)]
    preps = torch.stack(networks).requires_grad_()
    rates = 10 ** (2.5 * torch.rand(RUNS) - 2.2)
    with prepkit.ZooWriter(path, width=64, license="mit", task={"kind": "images", "dataset": "digits"}) as writer:
        for epoch in range(1, EPOCHS + 1):
            for batch in torch.randperm(len(labels)).split(BATCH):
                logits = prepkit.run_instances(NETWORK, preps, images[batch].flatten(1))
                loss = cross_entropy(logits.flatten(0, 1), labels[batch].repeat(RUNS), reduction="sum") / len(batch)
                (gradient,) = torch.autograd.grad(loss, preps)
                preps.data -= rates[:, None, None] * gradient
            logits = prepkit.run_instances(NETWORK, preps.detach(), test_images.flatten(1))
            writer.add_stack(
                preps.detach(),
                architecture=NETWORK,
                ids=[f"run{run}-epoch{epoch}" for run in range(RUNS)],
                split=["train" if run < TRAIN_RUNS else "test" for run in range(RUNS)],
                run=range(RUNS),
                epoch=[epoch] * RUNS,
                learning_rate=rates.tolist(),
                accuracy=(logits.argmax(2) == test_labels).float().mean(1).tolist(),
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        make_zoo(sys.argv[1])
    except prepkit.PrepkitError as error:
        sys.exit(str(error))
