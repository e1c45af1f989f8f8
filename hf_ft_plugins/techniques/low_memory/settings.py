"""What all parts of `low-memory` share: its name."""

NAME = "low-memory"
