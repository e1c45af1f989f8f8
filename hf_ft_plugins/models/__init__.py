"""The one reader of a model: what it takes, and how it is built. Asks the model itself, never its name."""
