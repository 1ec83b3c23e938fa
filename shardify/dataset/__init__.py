"""The finished data set: manifest, index, verify, stats, report."""
