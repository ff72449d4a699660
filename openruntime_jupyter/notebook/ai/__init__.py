"""Prompts in a notebook: `%%openruntime ai`, `%openruntime ai`, `fix`, and what is beside them."""
