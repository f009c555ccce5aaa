"""Connects to the database, installs and upgrades it, holds all SQL statements, and runs the embedded server."""
