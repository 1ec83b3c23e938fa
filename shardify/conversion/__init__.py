"""What the parent does in a build: survey, split, task list, output folder, publish."""
