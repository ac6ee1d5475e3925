"""Model diffing: what several sources of a crosscoder share, and what one of them has alone."""
