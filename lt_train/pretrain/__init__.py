"""Stage 1: training a backbone and its first classifier on a long-tailed training set."""
