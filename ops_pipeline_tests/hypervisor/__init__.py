"""Tests of virtualisation."""
