"""What a run is given, and what it reads of it: the floor under training, where a run has no SAE yet."""
