"""Speed, side by side and interleaved; results are ratios. See README.md."""
