"""The start of a NetSpace from PReps, for zoos of signals.

Shapes: N instances, H x W the PRep, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import torch
from torch import Tensor, nn

import prepkit
from netspace.space._start_scale import NEGATIVE_SLOPE, InitialisationError
from netspace.space.network import Encoder, NetSpace

SCALE_OF_DEVIATION = 0.3  # the decoder's scale at the start, as a share of the deviation between instances
HALVINGS = 60  # bisections, enough for float64
LEAST_DEVIATION = 1e-5  # relative deviation below which PReps differ by rounding alone
PREPS_AT_ONCE = 8  # PReps encoded together, since the first features take E / 64 times the PRep


@torch.no_grad()
def start_from_preps(netspace: NetSpace, preps_NHW: Tensor, instance_HW: Tensor, layout: prepkit.Layout) -> None:
    """Start where embeddings differ and every predicted PRep works; for signals (Eq. 2), such as signed distances.

    With PyTorch's start the embeddings of sine MLPs agree to 0.001, and all become one mean shape. Here
    - the convolutions of encoder and decoder are drawn Kaiming normal for what follows them (LeakyReLU; nothing after
      the decoder's last one) and their biases are 0; a classifier keeps its start;
    - the encoder's last convolution is rescaled so that each embedding coordinate has mean 1 and deviation 1 over the
      PReps;
    - the decoder's bias is an instance, and its scale is 0.3 of the deviation that the values of each tensor have over
      all PReps; in the padding it is 0.

    preps_NHW:   at least 2 PReps that differ, a batch of the zoo or all of it
    instance_HW: the PRep around which predictions start, such as that of a freshly initialised network
    layout:      layout of the architecture
    raises InitialisationError if the PReps are too few, all the same or of another size
    """
    height, width = netspace.height, netspace.width
    if len(preps_NHW) < 2 or preps_NHW.shape[1:] != (height, width) or instance_HW.shape != (height, width):
        raise InitialisationError(
            f"a start from PReps needs at least 2 of {height} x {width} and an instance of that size; "
            f"found {list(preps_NHW.shape)} and {list(instance_HW.shape)}."
        )
    if layout.total > height * width:
        raise InitialisationError(
            f"a layout of {layout.total:,} values does not fit PReps of {height} x {width}; give their own layout."
        )
    for module in (netspace.encoder, netspace.decoder):
        for layer in module.children():
            nn.init.kaiming_normal_(layer.get_parameter("weight"), a=NEGATIVE_SLOPE, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.get_parameter("bias"))
    nn.init.kaiming_normal_(netspace.decoder.conv4.weight, nonlinearity="linear")
    _standardise(netspace.encoder, preps_NHW)
    _start_around(netspace.decoder.scale, netspace.decoder.bias, preps_NHW, instance_HW, layout)


def _standardise(encoder: Encoder, preps_NHW: Tensor) -> None:
    """Rescale the encoder's last convolution so that each coordinate has mean 1 and deviation 1 over the PReps."""
    parts = [preps_NHW[first : first + PREPS_AT_ONCE] for first in range(0, len(preps_NHW), PREPS_AT_ONCE)]
    # Maxima are taken before LeakyReLU, which rises and so commutes with a maximum; a positive gain commutes with both.
    maxima_NE = torch.cat([encoder.conv4(encoder.row_features(part)).amax(dim=(2, 3)) for part in parts]).double()
    least = LEAST_DEVIATION * maxima_NE.abs().amax(dim=0)
    if bool((maxima_NE.std(dim=0) <= least).any()):
        raise InitialisationError(
            f"an embedding coordinate is the same for all {len(preps_NHW)} PReps, so it cannot be rescaled to "
            "deviation 1; give more PReps, of instances that differ."
        )
    # LeakyReLU(m + r) has a mean above its deviation at the first r and a mean below 0 at the second, so bisect.
    above_E, below_E = maxima_NE.std(dim=0) - maxima_NE.mean(dim=0), -maxima_NE.amax(dim=0)
    for _ in range(HALVINGS):
        middle_E = (above_E + below_E) / 2
        deviation_E, mean_E = torch.std_mean(nn.functional.leaky_relu(maxima_NE + middle_E, NEGATIVE_SLOPE), dim=0)
        above_E = torch.where(mean_E >= deviation_E, middle_E, above_E)
        below_E = torch.where(mean_E >= deviation_E, below_E, middle_E)
    gain_E = 1 / nn.functional.leaky_relu(maxima_NE + above_E, NEGATIVE_SLOPE).std(dim=0)
    weight, bias = encoder.conv4.weight, encoder.conv4.get_parameter("bias")
    weight.mul_(gain_E.to(weight).view(-1, 1, 1, 1))
    bias.copy_(gain_E * above_E)  # it was 0


def _start_around(
    scale_HW: Tensor, bias_HW: Tensor, preps_NHW: Tensor, instance_HW: Tensor, layout: prepkit.Layout
) -> None:
    bias_HW.copy_(instance_HW)
    values, scale = preps_NHW.flatten(1), torch.zeros_like(scale_HW).flatten()
    for slot in layout:
        scale[slot.start : slot.stop] = SCALE_OF_DEVIATION * values[:, slot.start : slot.stop].std()
    scale_HW.copy_(scale.view_as(scale_HW))
