"""HTML and text of tasks, tables, errors and help."""
