"""What gets into the database, and its checks: base models, adapters, tasks, libraries."""
