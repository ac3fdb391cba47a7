"""Clean-up of LangGraph checkpoints in Redis: what belongs to which thread, what is old, and what may go."""
