"""Prompts in a notebook: `%%openruntime ai`, `%openruntime ai`, `%openruntime fix` and related commands."""
