"""Zoos: many packed networks with their metadata, sharded, checked and as fast to read as memory."""
