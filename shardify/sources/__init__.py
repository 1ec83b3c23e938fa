"""Zips, nested zips and folders as one catalog of entries; extract one payload."""
