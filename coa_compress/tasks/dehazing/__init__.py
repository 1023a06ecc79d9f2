"""Single-image dehazing: network, haze physics, data, losses, measures."""
