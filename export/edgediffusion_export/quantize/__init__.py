"""8-bit integers in place of float32, where that is fast on CPUs and costs little in quality."""
