"""Training an adapter for a task."""
