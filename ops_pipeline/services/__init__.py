"""Host services: what is known of them, whether they are well, and bounded recovery of those that are not."""
