"""Experiments on questions that the paper does not ask."""
