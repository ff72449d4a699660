"""HTTP: requests, errors, content negotiation and event streams."""
