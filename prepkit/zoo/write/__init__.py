"""Zoos that are written: instances, staging, the journal, finishing."""
