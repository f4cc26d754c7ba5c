"""Structured pruning: groups, costs, strategies, channel pruning, adaptive BN, the search."""
