"""Where finished trials are shown: one file a kind."""
