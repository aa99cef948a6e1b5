"""prepkit: trained networks as data.

    network = prepkit.architecture("resnet8@cifar10").build()
    layout = prepkit.Layout.of(network)
    prep = layout.pack(network.state_dict(), layout.shape(width=512))     # [H, 512]
    network.load_state_dict(layout.unpack(prep))

Names are loaded when they are first used, so that importing prepkit imports neither torch nor anything else heavy.
"""

from prepkit.support.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
