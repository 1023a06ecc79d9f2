"""Published dehazing networks, written for the benchmarks: architectures only, no weights."""
