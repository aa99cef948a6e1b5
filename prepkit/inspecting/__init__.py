"""What the commands `prepkit stat` and `prepkit diff` find out about tensors, wherever these are kept."""
