"""Durable history of tasks, outputs, metrics and conversations in SQLite."""
