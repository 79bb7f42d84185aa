"""Sources of interactions and titles, one file each."""
