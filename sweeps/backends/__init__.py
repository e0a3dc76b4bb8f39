"""Places where packs are trained: one file a kind."""
