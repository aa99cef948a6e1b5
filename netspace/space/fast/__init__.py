"""NetSpace's encoder and decoder on a CPU or a GPU: they compute what network.py defines, in less time and memory.

`products.enabled = False` is the one switch that makes every NetSpace run the plain network instead.
Under bfloat16 autocast, large matrix products are computed in bfloat16. Inputs, outputs, gradients of parameters and
sums over instances stay in float32, and so do the maxima, whose places alone are found in bfloat16.
Shapes: N instances, H x W the PRep, E embedding values; R rows, L places along them, C channels, O outputs, K factors.
"""

from netspace.space.fast._channels_last import decode_channels_last, decodes_channels_last
from netspace.space.fast._decoder import decode, decodes
from netspace.space.fast._encoder import encode, encodes

__all__ = ["decode", "decode_channels_last", "decodes", "decodes_channels_last", "encode", "encodes"]
