"""Wire types of the API, by resource."""
