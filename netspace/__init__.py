"""NetSpace: an encoder-decoder over PReps that learns a space of networks (arXiv 2206.05194).

    run = netspace.train(netspace.load_recipe("digits_multi"), "zoo", "run")
    space = netspace.load("run")                    # ready to use
    preps = space.decode(space.encode(preps))       # [N, H, W] -> [N, E] -> [N, H, W]

The package lives on prepkit's public names and never the other way round. Names are loaded when they are first used.
"""

from prepkit.support.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
