"""How fast and how small training is, measured side by side with others: `python -m benchmarks`."""
