"""What guides the adaptation to real haze, where no truth is known."""
