"""What a trained capsule network does inside, and how well it bears distorted images."""
