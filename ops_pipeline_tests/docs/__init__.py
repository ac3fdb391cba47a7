"""Tests of the documentation: what a page tells is done as it stands there."""
