"""The queue, its devices and its memory of what happened; it knows neither HTTP nor notebooks."""
