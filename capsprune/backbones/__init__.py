"""Backbones: the registry, MobileNetV1, weights, and the trunk."""
