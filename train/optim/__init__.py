"""One step: model wrapping, forward/backward, optimizer, schedule, EMA, memory."""
