"""The doctor: tries on the user's own mount what `warmer.observe.mount` only judges by name."""
