"""GPU metrics by the vendors' documented interfaces."""
