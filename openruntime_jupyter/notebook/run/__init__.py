"""Run a cell as a task, and show it."""
