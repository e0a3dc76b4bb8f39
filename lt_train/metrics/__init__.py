"""Metrics: accuracy by class split, and logit statistics."""
