"""Structured pruning: dependency groups, cost, strategies, shrinking, adaptive BN, the search."""
