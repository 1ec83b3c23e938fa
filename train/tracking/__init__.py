"""What a run writes for people: folder, metrics log, console, TensorBoard, panels."""
