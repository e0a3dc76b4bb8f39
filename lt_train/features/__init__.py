"""Feature banks: their format and their extraction."""
