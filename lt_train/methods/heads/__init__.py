"""Classifier heads, stacked over lanes."""
