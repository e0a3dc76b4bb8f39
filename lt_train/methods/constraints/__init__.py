"""Constraints on a head's weights during training: one file a kind."""
