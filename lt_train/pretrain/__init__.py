"""Representation training: one file a recipe."""
