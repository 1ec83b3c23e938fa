"""Read shards and return augmented batches on the training device."""
