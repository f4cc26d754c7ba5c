"""Reports of runs and sweeps: tables, figures, and what they say of the paper's claims."""
