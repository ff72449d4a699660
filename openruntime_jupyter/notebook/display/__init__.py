"""Views of tasks, tables, errors and help as HTML and plain text."""
