"""What `prepkit stat` and `diff` find out about tensors, wherever these are kept, and `info` about this machine."""
