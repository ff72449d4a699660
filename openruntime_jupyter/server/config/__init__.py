"""Traits: the settings of the server extension."""
