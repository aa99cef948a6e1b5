"""NetSpace: an encoder-decoder over PReps that learns a space of networks (arXiv 2206.05194).

    space = netspace.NetSpace(height=88, width=128, embedding_size=256, num_architectures=4)
    preps = space.decode(space.encode(preps))       # [N, H, W] -> [N, E] -> [N, H, W]

The package lives on prepkit's public names and never the other way round.
"""

from netspace.network import NetSpace as NetSpace

__all__ = ["NetSpace"]
