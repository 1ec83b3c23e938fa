"""State on disk: write, read back, load a trained model."""
