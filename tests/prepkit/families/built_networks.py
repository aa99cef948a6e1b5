"""The built-in networks as tests build them, and how many values each has."""

from torch import nn

from prepkit.families.registry import architecture

# Typed from the method's tables: parameters with BatchNorm, parameters packed, ClassId.
COUNTS = {
    "lenet_like@cifar10": (62_006, 62_006, 0),
    "vanilla_cnn@cifar10": (68_818, 68_818, 1),
    "resnet8@cifar10": (78_042, 77_706, 2),
    "resnet32@cifar10": (466_906, 465_674, 3),
    "resnet56@cifar10": (855_770, 853_642, None),
    "lenet_like@tiny_imagenet": (79_612, 79_612, 0),
    "vanilla_cnn@tiny_imagenet": (112_856, 112_856, 1),
    "resnet8@tiny_imagenet": (128_792, 128_456, 2),
    "resnet32@tiny_imagenet": (517_656, 516_424, 3),
    "resnet56@tiny_imagenet": (906_520, 904_392, None),
    "lenet_like@digits": (2_302, 2_302, 0),
    "vanilla_cnn@digits": (4_422, 4_422, 1),
    "resnet8@digits": (5_142, 5_058, 2),
    "resnet14@digits": (11_302, 11_162, 3),
    "resnet20@digits": (68_642, 68_250, None),
    "sine_mlp@sdf": (67_073, 67_073, 0),
    "sine_mlp@sdf_small": (4_481, 4_481, 0),
}

BATCH_NORM = [name for name, (trained, packed, _) in COUNTS.items() if trained != packed]

FORMS = ["trainable", "folded"]


def build(name: str, form: str) -> nn.Module:
    chosen = architecture(name)
    return chosen.build_folded() if form == "folded" else chosen.build()


def trained_looking(network: nn.Module) -> nn.Module:
    """Random values in every tensor: fresh BatchNorms (mean 0, variance 1) would hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()
