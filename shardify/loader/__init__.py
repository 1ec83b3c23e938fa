"""From shards to augmented batches on the device."""
