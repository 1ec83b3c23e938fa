"""The parent's side of a build: survey, splits, task list, output folder, manifest."""
