"""One path for everything that a person must know."""
