"""Metrics of machine, devices and tasks: samples, counters, rollups."""
