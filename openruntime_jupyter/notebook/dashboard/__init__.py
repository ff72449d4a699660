"""The dashboard: devices, charts, tasks, models and operations of a runtime, live in a notebook.

`feed.py` gathers what it shows, `actions.py` does what is clicked where the page can't ask the server itself, `widget.py` is the widget,
and `frontend/` the page's part, which `frontend/build.mjs` bundles into `static/`.
"""
