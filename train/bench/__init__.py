"""Measure the loader and the network, alone and beside others."""
