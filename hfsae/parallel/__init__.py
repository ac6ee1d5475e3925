"""Several processes: how they start, who trains which SAE or which of its features, and what happens if one ends."""
