"""The stages: one file each. A run goes in, a finished stage comes out."""
