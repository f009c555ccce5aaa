"""Connections, install and upgrade, tables, every statement that Python sends, and the embedded server."""
