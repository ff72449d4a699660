"""The dashboard: a live view of a runtime's devices, charts, tasks, models and operations in a notebook.

`feed.py` collects the data, `widget.py` is the widget, which also runs actions for pages that cannot reach the server, and `frontend/`
is the page's code, which `frontend/build.mjs` bundles into `static/`.
"""
