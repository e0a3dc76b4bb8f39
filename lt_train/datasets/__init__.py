"""Long-tailed datasets: one file a kind."""
