"""NetSpace's encoder and decoder on a CPU: what network.py defines, in less time and memory.

Under bfloat16 autocast, large matrix products are taken in bfloat16; what goes in and comes out, parameters' gradients
and sums over instances stay in float32, and so do the maxima: bfloat16 only finds their places.
Shapes: N instances, H x W the PRep, E embedding values; R rows, L places along them, C channels, O outputs, K factors.
"""

from netspace.space.fast.decoder import decode, decodes
from netspace.space.fast.encoder import encode, encodes

__all__ = ["decode", "decodes", "encode", "encodes"]
