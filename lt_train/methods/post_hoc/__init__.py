"""Adjustments of a finished head that cost no training: one file a kind."""
