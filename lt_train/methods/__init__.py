"""Ways to re-train the classifier: one file a kind."""
