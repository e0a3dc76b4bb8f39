"""Long-tailed datasets: the kinds, the cut and the checks."""
