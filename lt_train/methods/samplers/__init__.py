"""Orders in which training images are visited: one file a kind."""
