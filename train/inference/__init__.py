"""Use a trained model: predict, export."""
