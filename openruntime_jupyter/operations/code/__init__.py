"""A caller's code in a worker: shell, values, sources and environment."""
