"""Calls of Python functions as tasks: pickles, maps, executors and futures."""
