"""Runs as their folders tell of them: how they stand, what they measured, reports. Nothing here needs PyTorch."""
