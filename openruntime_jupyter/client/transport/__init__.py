"""Connections to a runtime: over HTTP, or within this process."""
