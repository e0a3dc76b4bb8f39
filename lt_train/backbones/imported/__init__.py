"""Imported models: any torch model with weights trained elsewhere, without changes to its code."""
