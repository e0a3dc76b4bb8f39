"""What decides, while trials are training, which of them go on: one file a scheduler."""
