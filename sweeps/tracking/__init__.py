"""Trackers, which show sweeps and trials to people, and the events they receive."""
