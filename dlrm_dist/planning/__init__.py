"""Sharding plans: made by TorchRec's planner, kept as files. Runs on one process, without devices."""
