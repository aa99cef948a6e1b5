"""NetSpace: an encoder-decoder over PReps that learns a space of networks (arXiv 2206.05194).

The package lives on prepkit's public names and never the other way round.
"""
