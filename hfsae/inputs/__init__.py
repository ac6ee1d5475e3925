"""What SAEs are trained on: a language model and text, an activation cache, or activations that the user has."""
