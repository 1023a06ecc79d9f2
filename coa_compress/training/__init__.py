"""One training loop, its schedule, averaging and checkpoints."""
