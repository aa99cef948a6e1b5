# %% [markdown]
# # Alignment and mode connectivity
# Two networks that were trained from the same start on different orders of the data lie far apart in weights. After the
# hidden units of one were put into the order of the other, it is the same function, and the way between them is better.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import prepkit

pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = (pixels.float() / 16).view(-1, 1, 8, 8)
architecture = prepkit.architecture("vanilla_cnn@digits")


def trained(seed: int) -> torch.Tensor:
    """Return the PRep of a network that was trained for eight epochs."""
    torch.manual_seed(seed)
    network = architecture.build()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(1200).split(100):
            optimiser.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimiser.step()
    return architecture.layout.pack(network.state_dict(), architecture.layout.shape(width=64))


# %%
first, second = trained(0), trained(1)
aligned = prepkit.align(architecture, second[None], first)
print(f"distance {aligned.before.item():.1f} before, {aligned.after.item():.1f} after")


# %%
def accuracies(start: torch.Tensor, end: torch.Tensor) -> list[float]:
    """Return the accuracy of networks on the line between two PReps, all run at once."""
    steps = torch.linspace(0, 1, 21)[:, None, None]
    logits = prepkit.run_instances(architecture, torch.lerp(start, end, steps), images[1200:])  # [21, B, 10]
    return (logits.argmax(2) == labels[1200:]).float().mean(1).tolist()


axes = plt.figure(figsize=(6, 4), layout="constrained").add_subplot()
axes.plot(torch.linspace(0, 1, 21), accuracies(first, second), label="as they are")
axes.plot(torch.linspace(0, 1, 21), accuracies(first, aligned.preps[0]), label="aligned")
axes.set(xlabel="share of the second network", ylabel="accuracy", title="Between two trained networks")
axes.legend()
axes.figure.savefig("align_networks.png", dpi=100)
