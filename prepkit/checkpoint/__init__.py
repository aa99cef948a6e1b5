"""Checkpoints of any kind: read, recognised, and written as plain state dicts."""
