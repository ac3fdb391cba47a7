"""Tests of the usage domain."""
