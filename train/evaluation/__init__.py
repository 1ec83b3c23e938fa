"""Metrics and evaluation passes."""
