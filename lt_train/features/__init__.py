"""The feature bank and how it is filled."""
