"""Backbones: networks from images to features, trained by stage 1 or imported with their checkpoints."""
