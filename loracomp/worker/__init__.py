"""The worker: its loop, leases, connections, heartbeat, reports, metrics and signals."""
