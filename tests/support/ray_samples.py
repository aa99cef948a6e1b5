"""Trees of runs as ray-tune, WeightCLIP and others write them, and the networks in them in plain torch.

The networks are written from the description of each zoo alone, so that they judge what prepkit rebuilds.
"""

import json

import numpy as np
import torch
from PIL import Image
from torch import nn

import prepkit

NLIN = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}
HALF, MNIST = ((0.5,), (0.5,)), ((0.1307,), (0.3081,))  # mean and deviation of each channel


class Chain(nn.Module):
    """A network of ModelZooDataset: a list of modules that is run from first to last."""

    def __init__(self, *modules):
        super().__init__()
        self.module_list = nn.ModuleList(modules)

    def forward(self, images):
        for module in self.module_list:
            images = module(images)
        return images


def small_cnn(nlin="tanh", channels=1, dropout=False, outputs=10):
    """The CNN of 28 x 28 images; dropouts stand after the first two activations and the one between linear layers."""
    act, drop = NLIN[nlin], [nn.Dropout(0.5)] if dropout else []
    return Chain(
        *(nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2), act(), *drop),
        *(nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), act(), *drop),
        *(nn.Conv2d(6, 4, 2), act(), nn.Flatten()),
        *(nn.Linear(36, 20), act(), *drop, nn.Linear(20, outputs)),
    )


def large_cnn(nlin="gelu", channels=3, outputs=10):
    """The CNN3 of 32 x 32 images, whose dropouts are always there."""
    act = NLIN[nlin]
    return Chain(
        *(nn.Conv2d(channels, 16, 3), nn.MaxPool2d(2), act(), nn.Dropout(0)),
        *(nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), act(), nn.Dropout(0)),
        *(nn.Conv2d(32, 15, 3), nn.MaxPool2d(2), act(), nn.Dropout(0), nn.Flatten()),
        *(nn.Linear(60, 20), act(), nn.Dropout(0), nn.Linear(20, outputs)),
    )


class SmallCNNZooNet(nn.Module):
    """The Small CNN Zoo's network under the names that CWI gives it."""

    def __init__(self, channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 2)
        self.conv2 = nn.Conv2d(16, 16, 3, 2)
        self.conv3 = nn.Conv2d(16, 16, 3, 2)
        self.dense = nn.Linear(16, 10)

    def forward(self, images):
        for conv in (self.conv1, self.conv2, self.conv3):
            images = conv(images).relu()
        return self.dense(images.flatten(2).mean(2))


def block(inputs, outputs, stride, shortcut):
    module = nn.Module()
    module.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    module.bn1 = nn.BatchNorm2d(outputs)
    module.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    module.bn2 = nn.BatchNorm2d(outputs)
    if stride > 1 or inputs != outputs:
        setattr(
            module, shortcut, nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
    return module


class ResNet(nn.Module):
    """A narrow ResNet18 under torchvision's names, with the stem for small images."""

    def __init__(self, widths=(4, 6, 8, 10), channels=3, outputs=10, shortcut="downsample"):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for number, width in enumerate(widths):
            first = block(before, width, 2 if number else 1, shortcut)
            self.add_module(f"layer{number + 1}", nn.Sequential(first, block(width, width, 1, shortcut)))
            before = width
        self.fc = nn.Linear(before, outputs)

    def forward(self, images):
        features = self.bn1(self.conv1(images)).relu()
        for number in range(1, 5):
            for each in getattr(self, f"layer{number}"):
                beside = [child for name, child in each.named_children() if name in ("downsample", "shortcut")]
                inner = each.bn2(each.conv2(each.bn1(each.conv1(features)).relu()))
                features = (inner + (beside[0](features) if beside else features)).relu()
        return self.fc(features.mean((2, 3)))


def filled(network, seed):
    """Give a network values that tell its classes apart, and its BatchNorms statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                scale = 0.3 if tensor.ndim < 2 else 2.5 / tensor[0].numel() ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return network.eval()


def balanced(network, data, normalisation):
    """Centre and scale a network's outputs on the test images, so that it tells them apart as a trained one does."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        outputs = network((data[0] - mean) / std)
        last.weight /= outputs.std(0)[:, None]
        last.bias.copy_((last.bias - outputs.mean(0)) / outputs.std(0))
    return network


def write_images(folder, size=28, channels=1, count=80, seed=0):
    """Write train/CLASS and test/CLASS; return the test images of 0 to 1 in the order of their paths, and labels."""
    random = np.random.default_rng(seed)
    images = []
    for part, total in (("train", 10), ("test", count)):
        for number in range(total):
            label = number % 10
            shade = random.integers(0, 160, (1, 1, channels))  # pictures of many colours, as networks tell them apart
            coarse = np.kron(random.integers(-80, 80, (size // 4, size // 4, channels)), np.ones((4, 4, 1)))
            noise = random.integers(0, 96, (size, size, channels))
            pixels = np.clip(shade + coarse * random.random() + noise, 0, 255).astype(np.uint8)
            file = folder / part / str(label) / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file)
            if part == "test":
                images.append((label, number, pixels))
    images.sort(key=lambda each: each[:2])
    stacked = np.stack([pixels for _, _, pixels in images]).transpose(0, 3, 1, 2)
    return torch.tensor(stacked).float() / 255, torch.tensor([label for label, _, _ in images])


def share_right(network, data, normalisation):
    """Return the accuracy of a network on the test images."""
    images, labels = data
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation)
    with torch.no_grad():
        return (network((images - mean) / std).argmax(1) == labels).double().mean().item()


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings_of(kind, nlin, seed, **others):
    return {
        "model::type": kind,
        "model::channels_in": 1,
        "model::o_dim": 4,
        "model::nlin": nlin,
        "model::dropout": 0.0,
        "model::use_bias": False,
        "optim::lr": 3e-4,
        "seed": seed,
        **others,
    }


def write_checkpoint(run, epoch, network, beside=("optimizer",), width=6):
    folder = run / f"checkpoint_{epoch:0{width}}"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "checkpoints")
    for name in beside:
        torch.save({"state": {}, "param_groups": []}, folder / name)


def write_run(root, number, networks, accuracy, settings):
    """Write a run as ModelZooDataset's ray does: iteration 0 first, with the settings and ray's notes in each line."""
    run = root / f"NN_tune_trainable_0a1b{number}_0000{number}_seed={settings['seed']}"
    rows = []
    for epoch, network in enumerate(networks):
        write_checkpoint(run, epoch, network)
        rows.append(
            {
                "train_loss": 2.0 - epoch,
                "train_acc": accuracy(network) / 2,
                "test_loss": 1.5,
                "test_acc": accuracy(network),
                "training_iteration": epoch,
                "hostname": "node7",
                "pid": 11,
                "date": "2021-07-01",
                "config": settings,
            }
        )
    write_lines(run / "result.json", rows)
    (run / "params.json").write_text(json.dumps(settings))
    return run


def imported(root, tmp_path, name="zoo", **options):
    """Import a tree; return the zoo, and the notes in one text."""
    written = prepkit.import_zoo("ray-tree", root, tmp_path / name, **options)
    return prepkit.open_zoo(tmp_path / name), " ".join(written.notes)
