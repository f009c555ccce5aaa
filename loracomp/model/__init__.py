"""Base models and encoders: loading, tokenising, scoring, generating, batching, and what tunes a CPU (`model.cpu`)."""
