"""Side-by-side comparisons with other tools: `python -m benchmarks.patch_vs_art`."""
