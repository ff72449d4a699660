"""Request handlers by resource."""
