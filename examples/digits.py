"""Train a ResNet8 with BatchNorm on handwritten digits, and run what `prepkit unpack` gave back without BatchNorm.

    python examples/digits.py train model.pt
    python examples/digits.py compare model.pt unpacked.pt

The digits (1,797 images of 8 x 8 pixels) come with scikit-learn: nothing is downloaded.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, leaky_relu, linear

import prepkit

EPOCHS = 30
BATCH = 64
TRAIN_IMAGES = 1_297  # the other 500 are the test set


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images `[1297, 1, 8, 8]` in 0 to 1, their labels, test images and labels; always the same split."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16.0
    labels = torch.tensor(data.target)[order]
    return images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES], images[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]


def train(path: str) -> None:
    """Train with SGD and a cosine schedule, and save a plain state dict."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    network = prepkit.architecture("resnet8@digits").build()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = cross_entropy(network(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        if (epoch + 1) % 10 == 0:
            network.eval()
            accuracy = share_right(network(test_images), test_labels)
            print(f"epoch {epoch + 1:2d}  loss {loss.item():.3f}  test accuracy {accuracy:.1%}")
    torch.save(network.state_dict(), path)
    print(f"saved {path}: a ResNet8 with BatchNorm")


def resnet8_without_batch_norm(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The folded ResNet8 written out by hand, without prepkit: images `[B, 1, 8, 8]` -> logits `[B, 10]`."""

    def conv(name: str, features: Tensor, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return conv2d(features, weight, tensors[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    features = leaky_relu(conv("conv", images))
    for block, stride in (("stages.0.0", 1), ("stages.1.0", 2), ("stages.2.0", 2)):
        residual = conv(f"{block}.conv2", leaky_relu(conv(f"{block}.conv1", features, stride)))
        shortcut = conv(f"{block}.shortcut.0", features, stride) if stride > 1 else features
        features = leaky_relu(residual + shortcut)
    return linear(features.mean(dim=(2, 3)), tensors["linear.weight"], tensors["linear.bias"])


@torch.no_grad()
def compare(trained_path: str, unpacked_path: str) -> None:
    """Print the test accuracy of the trained network and of the unpacked one; fail if their logits differ."""
    _, _, images, labels = digits()
    network = prepkit.architecture("resnet8@digits").build().eval()
    network.load_state_dict(torch.load(trained_path, weights_only=True))
    trained = network(images)
    unpacked = resnet8_without_batch_norm(torch.load(unpacked_path, weights_only=True), images)
    difference = ((trained - unpacked).abs().max() / trained.abs().max()).item()
    print(f"trained, with BatchNorm           test accuracy {share_right(trained, labels):.1%}")
    print(f"packed, unpacked, no BatchNorm    test accuracy {share_right(unpacked, labels):.1%}")
    print(f"largest difference of the logits  {difference:.1e} of the largest logit")
    if not difference < 1e-5:
        sys.exit("the unpacked network is not the one that was trained")


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy, 0 to 1."""
    return (logits.argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    commands = {"train": (train, 1), "compare": (compare, 2)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands or len(sys.argv) != 2 + commands[sys.argv[1]][1]:
        sys.exit(__doc__)
    commands[sys.argv[1]][0](*sys.argv[2:])
