"""Device lanes, their order, and what may start."""
