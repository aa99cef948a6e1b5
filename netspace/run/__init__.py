"""Runs: the folder of a trained space, its card, the Hub."""
