"""Which channels belong together, and cutting them."""
