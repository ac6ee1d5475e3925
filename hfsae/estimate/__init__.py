"""Memory and hours that a training will need, before anything is loaded."""
