"""Benchmarks: one module per headline figure, each of which prints a ratio against its floor.

What belongs here: filling private databases, timing, and saying whether a target was met. What does not: assertions
(a missed target is printed, never raised) and anything that a deployment imports.
"""
