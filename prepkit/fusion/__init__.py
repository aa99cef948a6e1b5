"""Folding BatchNorm into the layers before it, with a proof that the network stays the same function."""
