"""The card of a zoo: a README.md that the Hub understands."""
