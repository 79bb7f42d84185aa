"""From source files to examples: a history of items and the next one."""
