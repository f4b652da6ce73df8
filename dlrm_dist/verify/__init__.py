"""Sharded against unsharded training, on this machine: `dlrm-dist verify`."""
