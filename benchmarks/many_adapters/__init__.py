"""What grows with the number of active adapters, and how fast their files are read."""
