"""LLM usage: hourly, daily and monthly roll-ups of the gateway's calls, their checks, reports and demo data."""
