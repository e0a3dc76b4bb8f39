"""Backends, which train packs: in this process, or on a Ray cluster."""
