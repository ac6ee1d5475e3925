"""The loopback Hub behaves as the Hub does, as far as the genuine client can tell. Nothing is patched anywhere."""
