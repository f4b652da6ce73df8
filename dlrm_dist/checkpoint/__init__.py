"""Checkpoints: complete or absent, made for the model and not for the cluster."""
