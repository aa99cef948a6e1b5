"""Running many instances of one architecture."""
