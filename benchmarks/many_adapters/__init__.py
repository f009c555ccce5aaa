"""Measures which calls get slower with the number of active adapters, and how fast adapters' files are read."""
