"""What the recorded history tells about performance, memory, efficiency and errors: computed first, put into words second.

`answer.py` is the way in. `evidence.py` reads the history; `levels.py`, `courses.py`, `failures.py` and `use.py` find things in it by the
means of `statistics.py`; `report.py` puts them in order and into a text, which `wording.py` lets a model word.
"""
