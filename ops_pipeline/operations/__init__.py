"""The deployment itself: what its jobs did and what is wrong with its configuration."""
