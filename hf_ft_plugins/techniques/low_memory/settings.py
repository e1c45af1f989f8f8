"""What all parts of `low-memory` share: its name, and which options are those of some algorithms alone."""

NAME = "low-memory"

OWN_OPTIONS = {
    "rank": ("galore", "apollo"),
    "update_gap": ("galore", "apollo", "apollo-mini"),
    "scale": ("galore", "apollo", "apollo-mini", "sinkgd"),
    "active_layers": ("lisa",),
    "switch_every": ("lisa", "badam"),
    "perturbation": ("mezo",),
}
