"""Findings about performance, memory, efficiency and errors in the recorded history, computed and optionally rewritten by a model.

`report.py` is the entry point. `dataset.py` reads the history. `metric_findings.py` and `task_findings.py` compute the findings with
`statistics.py`. `report.py` orders them, and `rewriting.py` lets a model rewrite the text.
"""
