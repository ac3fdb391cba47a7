"""The job `run_maintenance`: passes over what nobody needs any more, with grace periods."""
