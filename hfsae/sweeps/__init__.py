"""Many SAEs on one stream of activations, from one file."""
