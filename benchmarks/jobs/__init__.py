"""The jobs of benchmarks/compare, one module each."""
