"""Throughput beside its physical limit and the peers, measured in one run on this machine."""
