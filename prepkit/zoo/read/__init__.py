"""Zoos that are read: stores, views, loaders."""
