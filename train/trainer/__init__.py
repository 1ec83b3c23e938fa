"""The training run: loop, stages, state, resume, stop."""
