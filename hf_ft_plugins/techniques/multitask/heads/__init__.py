"""The model of several tasks: one encoder, a head for each, and what each head computes. Knows nothing of mixing."""
