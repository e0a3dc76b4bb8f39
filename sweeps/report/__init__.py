"""Figures and tables from finished sweeps."""
