"""Per-sample losses over logits [..., K]."""
