"""A zoo whose instances keep their BatchNorm."""

from view_samples import networks

import prepkit
from prepkit.prep.file import Origin, PRep


def kept_batch_norm(root, count):
    """A zoo of ResNet8 with BatchNorm and random running statistics."""
    with prepkit.ZooWriter(root, width=64) as writer:
        for network in networks("resnet with BatchNorm", count):
            layout = prepkit.Layout.of(network)
            values = layout.pack(network.state_dict(), layout.shape(64))
            writer.add(PRep(values, layout, Origin("resnet8@digits")))
    return prepkit.open_zoo(root)
