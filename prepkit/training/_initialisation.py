"""How the weights of a network that is to be trained are drawn, where its builder shall not have the last word."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from prepkit.errors import ZooError

Initialisation = Literal["builder", "kaiming_fan_out"]
INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def initialise(network: nn.Module, how: Initialisation) -> None:
    """Draw weights anew from torch's global generator, in the order of the network's modules.

    "builder":         nothing is drawn; the network keeps what its builder gave it
    "kaiming_fan_out": the weights of convolutions, normal with variance 2 / (outputs x kernel), so that gradients keep
                       their size through ReLU (He et al., 2015); as torchvision's ResNets and NetSpace's reference
    raises ZooError for "kaiming_fan_out" where there is no convolution
    """
    if how == "builder":
        return
    convolutions = [module for module in network.modules() if isinstance(module, CONVOLUTIONS)]
    if not convolutions:
        raise ZooError(f"initialisation '{how}' is for convolutions, and this network has none; leave it out.")
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
