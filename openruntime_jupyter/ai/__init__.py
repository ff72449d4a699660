"""Prompts and what is told about the past."""
