"""The space: the network, its start, prediction and evaluation."""
