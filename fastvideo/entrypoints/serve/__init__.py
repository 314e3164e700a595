"""The server: an HTTP API over a durable queue, and one thread that owns the model."""
