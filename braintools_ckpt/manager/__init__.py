"""All the checkpoints of one run: when to save, what to keep, from where to go on."""
