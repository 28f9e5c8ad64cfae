"""Discrete choices that are tuned by gradient: straight-through estimators, masked layers, gates, order of sums."""
