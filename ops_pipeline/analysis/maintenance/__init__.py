"""Maintenance of the analysis lab with grace periods: applications, tasks and results that nobody needs any more.

Nothing is deleted before its grace is over, nothing on one look, and everything is archived first.
"""
