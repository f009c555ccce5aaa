"""The six steps of a job; they pass frozen records and never import one another."""
