"""Moving shapes: a procedural world that a small text-to-video model learns from scratch."""
