"""Prompts to models and insights into the recorded history."""
