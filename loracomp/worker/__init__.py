"""The worker: its loop, and what keeps it alive and visible (leases, connections, presence, metrics, signals)."""
