"""Symmetries of a network: which changes of its tensors leave its function as it is, derived from one run."""
