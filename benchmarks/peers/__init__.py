"""The ways of pruning that are compared: ours, and those of other libraries as users call them."""
