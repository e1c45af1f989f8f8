"""Stage after stage, without forgetting what the stages before have taught."""
