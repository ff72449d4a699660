"""Python client of a runtime, over HTTP or embedded in this process."""
