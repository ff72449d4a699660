"""Stored arrays: files, quota and eviction."""
