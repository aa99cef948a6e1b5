"""BatchNorm folded into the layers before it, with proof."""
