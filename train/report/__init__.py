"""HTML report of a run; compare runs."""
