"""What the layer costs: workloads, timing rules and the benchmarks themselves."""
