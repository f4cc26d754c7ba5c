"""What the command line does itself: names to folders, and plain results to tables."""
