"""Training arguments: the class, its YAML files, its command line options, and what they mean for one SAE."""
