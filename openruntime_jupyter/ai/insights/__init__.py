"""Findings about performance, memory, efficiency and errors in the recorded history, computed and optionally rewritten by a model.

`response.py` is the entry point. `dataset.py` reads the history. `levels.py`, `trends.py`, `failures.py` and `usage.py` compute findings
with `statistics.py`. `report.py` orders and formats them, and `rewriting.py` lets a model rewrite the text.
"""
