"""Engines, which run tasks in workers."""
