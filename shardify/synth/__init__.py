"""Synthetic stand-in data."""
