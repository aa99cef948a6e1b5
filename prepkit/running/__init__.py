"""Many instances of one architecture run at once."""
