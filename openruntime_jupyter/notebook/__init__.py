"""Notebook integration: magics, and the display of tasks in cells."""
