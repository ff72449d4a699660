"""Publication of task events, output and tokens."""
