"""Published checkpoint files: key dialects, strict loading, streaming writers, conversion. Acts on networks and models."""
