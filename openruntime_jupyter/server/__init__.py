"""The Jupyter face: routes, identity, WebSocket and lifecycle around one `Runtime`."""
