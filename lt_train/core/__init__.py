"""Foundations: errors, specifications and registries, random streams, devices, files, progress."""
