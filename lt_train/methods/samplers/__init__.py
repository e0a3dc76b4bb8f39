"""Orders in which training pictures are visited: one file a kind."""
