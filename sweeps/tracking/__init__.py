"""Trackers, which show sweeps and trials to people, and what they receive."""
