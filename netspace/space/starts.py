"""The start of a NetSpace from PReps: embeddings differ, and predictions begin near an instance or near the centroid.

Shapes: N instances, H x W the PRep, C its cells in a row, E embedding values.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

from collections.abc import Sequence

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
    _check(netspace, preps_NHW, layout.total, instance_HW)
    _start_convolutions(netspace, preps_NHW)
    scale_C, values_NC = torch.zeros(height * width), preps_NHW.flatten(1)
    for slot in layout:
        scale_C[slot.start : slot.stop] = SCALE_OF_DEVIATION * values_NC[:, slot.start : slot.stop].std()
    netspace.decoder.bias.copy_(instance_HW)
    netspace.decoder.scale.copy_(scale_C.view(height, width))


@torch.no_grad()
def start_from_centroid(netspace: NetSpace, preps_NHW: Tensor, totals_N: Sequence[int]) -> None:
    """Start as `start_from_preps` does, but with predictions about the mean of all training PReps.

    It is for zoos whose instances share starts, where the mean is near all of them and its network works. The decoder's
    bias is the mean, and its scale is 0.3 of each cell's deviation, or of the mean deviation over all cells where a
    cell's own is smaller. In the padding both are 0. The decoder's last convolution is 0 as well, so that every
    prediction is the mean at first, and learning takes fewer steps than with the last convolution of
    `start_from_preps` (benchmarks/results/README.md).

    A decoder has one scale and one bias for all architectures. With several, mean and deviation of a cell are those of
    the instances that have a value there: a network never reads the cells behind its own last value.

    preps_NHW: at least 2 PReps that differ, all those that are trained on
    totals_N:  the number of values of each instance; the cells behind them are padding
    raises InitialisationError if the PReps are too few, all the same or of another size
    """
    _check(netspace, preps_NHW, max(totals_N, default=0))
    _start_convolutions(netspace, preps_NHW)
    nn.init.zeros_(netspace.decoder.conv4.weight)
    mean_C, deviation_C = _mean_and_deviation(preps_NHW, totals_N)
    used = slice(0, max(totals_N))
    scale_C = torch.zeros_like(mean_C)
    scale_C[used] = SCALE_OF_DEVIATION * deviation_C[used].clamp(min=float(deviation_C[used].mean()))
    netspace.decoder.bias.copy_(mean_C.view_as(netspace.decoder.bias))
    netspace.decoder.scale.copy_(scale_C.view_as(netspace.decoder.scale))


def _mean_and_deviation(preps_NHW: Tensor, totals_N: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation `[C]` in float64 of each cell over the instances that have a value there.

    The deviation is 0 where only one of them has one, and both are 0 where none has. PReps are read one by one.
    """
    count_C, sum_C, squares_C = torch.zeros(3, preps_NHW[0].numel(), dtype=torch.float64)
    rows = list(zip(preps_NHW.flatten(1), totals_N, strict=True))
    for prep_C, total in rows:
        count_C[:total] += 1
        sum_C[:total] += prep_C[:total]
    mean_C = sum_C / count_C.clamp(min=1)
    for prep_C, total in rows:
        squares_C[:total] += (prep_C[:total] - mean_C[:total]).square()
    return mean_C, (squares_C / (count_C - 1).clamp(min=1)).sqrt()


def _check(netspace: NetSpace, preps_NHW: Tensor, values: int, instance_HW: Tensor | None = None) -> None:
    """Raise InitialisationError if there are too few PReps, or not of the size of the NetSpace and a layout."""
    height, width = netspace.height, netspace.width
    shapes = [tensor.shape for tensor in (preps_NHW, instance_HW) if tensor is not None]
    if len(preps_NHW) < 2 or any(shape[-2:] != (height, width) for shape in shapes):
        more = "" if instance_HW is None else " and an instance of that size"
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise InitialisationError(f"a start from PReps needs at least 2 of {height} x {width}{more}; found {found}.")
    if values > height * width:
        raise InitialisationError(
            f"a layout of {values:,} values does not fit PReps of {height} x {width}; give their own layout."
        )


def _start_convolutions(netspace: NetSpace, preps_NHW: Tensor) -> None:
    for module in (netspace.encoder, netspace.decoder):
        for layer in module.children():
            nn.init.kaiming_normal_(layer.get_parameter("weight"), a=NEGATIVE_SLOPE, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.get_parameter("bias"))
    nn.init.kaiming_normal_(netspace.decoder.conv4.weight, nonlinearity="linear")
    _standardise(netspace.encoder, preps_NHW)


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
