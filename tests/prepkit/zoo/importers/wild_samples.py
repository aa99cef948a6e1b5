"""A small CNN Wild Park, written from the description of the format alone, and its networks as plain functions."""

import sys
import types
import typing
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

CLASSES = 3
CONFIGS = (  # channels, kernels, strides, residual sums, activations
    ([3, 4, 6, 5], [3, 5, 3], [1, 1, 1], [-1, -1, 0], ["relu", "none", "gelu"]),  # 4 channels are added to 5
    ([3, 6, 4, 3, 4], [3, 3, 7, 3], [1, 1, 1, 1], [-1, -1, 0, 1], ["tanh", "sigmoid", "leaky_relu", "tanh"]),  # 6 to 3
    ([3, 5], [5], [2], [-1], ["gelu"]),
)
MEAN, STD = [0.49139968, 0.48215841, 0.44653091], [0.24703223, 0.24348513, 0.26158784]
TASK = {"kind": "images", "dataset": "folder", "mean": MEAN, "std": STD, "split": {"seed": 0, "test": "test"}}


def config_of(number):
    channels, kernels, strides, residual, activations = CONFIGS[number % len(CONFIGS)]
    return {
        "n_layers": len(kernels),
        "n_classes": CLASSES,
        "channels": channels,
        "kernel_size": kernels,
        "stride": strides,
        "padding": [kernel // 2 for kernel in kernels],
        "residual": residual,
        "activation": activations,
    }


def weights_of(config, seed):
    random = torch.Generator().manual_seed(seed)
    channels, state = config["channels"], OrderedDict()
    for layer, kernel in enumerate(config["kernel_size"]):
        shape = channels[layer + 1], channels[layer], kernel, kernel
        state[f"layers.{layer}.weight"] = torch.randn(shape, generator=random) * 2 / kernel
        state[f"layers.{layer}.bias"] = torch.randn(shape[:1], generator=random)
    state["fc.weight"] = torch.randn(CLASSES, channels[-1], generator=random)
    state["fc.bias"] = torch.randn(CLASSES, generator=random) / 10
    return state


def oracle(config, state, images):
    """Run a network of the park, layer by layer, with loops over the channels that residual sums share."""
    acts = {
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
        "none": lambda x: x,
    }
    outputs, x = [], images
    for layer in range(config["n_layers"]):
        weight, bias = state[f"layers.{layer}.weight"], state[f"layers.{layer}.bias"]
        x = functional.conv2d(
            x, weight.to(x), bias.to(x), stride=config["stride"][layer], padding=config["padding"][layer]
        )
        source = config["residual"][layer]
        if source != -1:
            for channel in range(min(x.shape[1], outputs[source].shape[1])):
                x[:, channel] = x[:, channel] + outputs[source][:, channel]
        x = acts[config["activation"][layer]](x)
        outputs.append(x.clone())
    return x.mean((2, 3)) @ state["fc.weight"].to(x).T + state["fc.bias"].to(x)


def contents(config, state, accuracy, iteration):
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 2)}}, "param_groups": []},
        "config": config,
        "iteration": iteration,
        "time_total": 1.5,
        "last_result": {"test/acc": accuracy, "test/loss": 2.0, "training_iteration": iteration},
    }


def checkpoint(park, run, iteration):
    return park / run / f"checkpoint_{iteration:06d}" / "checkpoint.pt"


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def write_park(park, runs=4, steps=(10, 20), accuracy_of=lambda config, state: 0.5):
    """Write runs, of which each has its own config, and a checkpoint for each step."""
    for run in range(runs):
        config = config_of(run)
        for step in steps:
            state = weights_of(config, 100 * run + step)
            save(checkpoint(park, f"run_{run}", step), contents(config, state, accuracy_of(config, state), step))


def write_pictures(folder):
    """Write pictures of random colours, and return the test pictures as the task normalises them, and their labels."""
    random, pixels, labels = np.random.default_rng(3), [], []
    for part, count in (("train", 1), ("test", 14)):
        for label in range(CLASSES):
            (folder / part / f"class_{label}").mkdir(parents=True)
            for number in range(count):
                colour, noise = random.integers(0, 200, 3), random.integers(0, 56, (8, 8, 3))
                picture = (colour + noise).astype(np.uint8)
                Image.fromarray(picture).save(folder / part / f"class_{label}" / f"{number:02}.png")
                if part == "test":
                    pixels.append(picture)
                    labels.append(label)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], torch.tensor(labels)


def save_as_omegaconf(file, content):
    """Save a checkpoint whose config is pickled as OmegaConf pickles it, by classes that are gone afterwards."""
    names = {"base": ("ContainerMetadata",), "dictconfig": ("DictConfig",), "listconfig": ("ListConfig",)}
    names["nodes"] = ("AnyNode", "IntegerNode", "StringNode")
    modules = {"omegaconf": types.ModuleType("omegaconf")}
    made = {}
    for module, classes in names.items():
        modules[f"omegaconf.{module}"] = types.ModuleType(f"omegaconf.{module}")
        for name in classes:
            made[name] = type(name, (), {"__module__": f"omegaconf.{module}"})
            setattr(modules[f"omegaconf.{module}"], name, made[name])

    def filled(name, **state):
        thing = made[name]()
        thing.__dict__.update(state)
        return thing

    parent = filled("DictConfig", _content={})

    def node(value):
        metadata = filled("ContainerMetadata", ref_type=typing.Any, element_type=typing.List)  # noqa: UP006
        common = {"_metadata": metadata, "_parent": parent}
        if isinstance(value, dict):
            return filled("DictConfig", _content={key: node(child) for key, child in value.items()}, **common)
        if isinstance(value, list):
            return filled("ListConfig", _content=[node(child) for child in value], **common)
        return filled("StringNode" if isinstance(value, str) else "IntegerNode", _val=value, **common)

    sys.modules.update(modules)
    try:
        save(file, {**content, "config": node(content["config"])})
    finally:
        for name in modules:
            del sys.modules[name]
