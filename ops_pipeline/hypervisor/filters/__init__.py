"""Network filters: desired in the database, defined in libvirt on every host.

What belongs here: the model of a filter, its XML, the plan, and what reads and writes either side.
"""
