"""Training a space: losses, objective, the loop."""
