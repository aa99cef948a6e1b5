"""Specs for tests: a small one that is right, and how to make it wrong."""

from prepkit.training.spec import parse_spec

TEXT = """\
name = "small"
description = "A few networks on digits."
license = "mit"
width = 128
architectures = ["lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits"]
seed = 3

[task]
kind = "images"
dataset = "digits"
split = {seed = 0, test = 360, validation = 180}

[instances]
"resnet8@digits" = {train = 5, test = 2}
"lenet_like@digits" = {train = 4, validation = 3, test = 2}

[training]
optimizer = "sgd"
learning_rate = 0.05
batch_size = 64
epochs = 30

[training."resnet8@digits"]
epochs = {low = 2, high = 4}

[teacher]
architecture = "resnet20@digits"
learning_rate = 0.1
epochs = 12
"""


def changed(*changes, text=TEXT):
    """The text with some pieces replaced; each must be there, once."""
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{old!r} is there {text.count(old)} times")
        text = text.replace(old, new)
    return text


def spec(*changes):
    return parse_spec(changed(*changes), "small.toml")


def trained(lines, text=TEXT):
    """The spec with other lines in [training], which has a learning rate, a batch size and epochs besides."""
    start, end = text.index("[training]"), text.index("[training.")
    given = {line.partition("=")[0].strip() for line in lines.splitlines()}
    rest = {"optimizer": '"sgd"', "learning_rate": "0.05", "batch_size": "64", "epochs": "30"}
    kept = "\n".join(f"{key} = {value}" for key, value in rest.items() if key not in given)
    return parse_spec(f"{text[:start]}[training]\n{lines}\n{kept}\n\n{text[end:]}", "small.toml")
