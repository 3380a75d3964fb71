"""The rehearsal's parts: what is rehearsed, its steps, its faults, and models that misbehave."""
