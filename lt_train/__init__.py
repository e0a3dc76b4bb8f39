"""Trains: datasets, backbones, feature banks and classifier re-training. Knows torch; never ray, optuna or mlflow."""
