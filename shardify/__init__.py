"""Zips of aligned images in, checked and reproducible WebDataset shards out.

Knows zips, tars and image headers. Imports neither torch nor DALI, nor ``train`` or ``model``.
"""
