"""What the command line prints: tables of plain results."""
