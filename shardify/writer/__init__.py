"""What a worker does: check samples, write one shard."""
