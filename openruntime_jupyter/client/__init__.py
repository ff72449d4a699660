"""How Python reaches a runtime: over HTTP, or hosted in this process."""
