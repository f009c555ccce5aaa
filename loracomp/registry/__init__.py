"""Stores base models, adapters, tasks, examples and libraries in the database, after checking them."""
