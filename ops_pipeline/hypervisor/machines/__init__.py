"""The status of machines: what the platform says, compared with what their hypervisors do."""
