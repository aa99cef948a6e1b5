"""Zoos and checkpoints on the Hugging Face Hub: addresses, pull, push, streaming."""
