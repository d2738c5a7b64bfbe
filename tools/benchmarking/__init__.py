"""What the benchmarks share: networks, ways of training them, measurements and pictures."""
