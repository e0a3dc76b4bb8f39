"""Analysis of sweeps, finished or not: reading, statistics, selection, comparison and `result.json`."""
