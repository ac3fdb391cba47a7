"""Tests of model status."""
