"""From shards to a trained network.

Meets ``shardify`` in one place only: the manifest's schema (``shardify.dataset.manifest``).
"""
