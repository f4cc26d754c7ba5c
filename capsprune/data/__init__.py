"""Data sets: names, sources, splits, transforms and loaders. Import from the submodules."""
