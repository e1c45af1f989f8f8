"""The host: techniques' hooks at Trainer's own override points, and what is written into a checkpoint."""
