"""The analysis lab: a queue of analysis tasks, the analyzers that do them, pipelines and maintenance.

What belongs here: plain Python over the tables of `tables`. What does not: Dagster, which is in `defs/analysis`.
"""
