"""A zoo on disk: manifest, shards, tables and their paths."""
