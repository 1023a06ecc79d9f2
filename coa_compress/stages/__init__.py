"""One thin class a step, in the order of the data."""
