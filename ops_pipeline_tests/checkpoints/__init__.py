"""Tests of the clean-up of checkpoints."""
