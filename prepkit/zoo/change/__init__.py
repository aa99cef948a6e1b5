"""Zoos made from zoos: verified, converted, merged, split and cut."""
