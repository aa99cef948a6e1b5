"""The version of prepkit and netspace; pyproject.toml reads it from here."""

__version__ = "0.1.0"
