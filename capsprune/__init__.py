"""capsprune: prune a backbone, put a capsule head on it, export it to ONNX, profile it."""

__version__ = "0.1.0"
