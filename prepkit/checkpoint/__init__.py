"""Reading checkpoints of any kind, and writing plain state dicts."""
