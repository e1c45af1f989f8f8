"""What a run survives: kills, faults, other techniques beside it, other ranks, a long haul."""
