"""Remote providers of models."""
