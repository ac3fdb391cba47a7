"""GPUs of the hypervisors: inventory, who uses them, and how that compares with the platform's assignments."""
