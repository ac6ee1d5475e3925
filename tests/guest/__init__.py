"""Architectures as somebody else would write them: one file each, outside of hfsae."""
