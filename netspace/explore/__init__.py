"""Exploring a space: embeddings, lines, optimisation, samples."""
