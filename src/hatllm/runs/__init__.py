"""The run folder: its name, its files, who made it of what, who works on it."""
