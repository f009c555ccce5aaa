"""Trains adapters for tasks."""
