"""Recovery of tasks that nobody is going to end, in four passes that know nothing of each other.

What belongs here: what each pass looks for, and the guarded change in batches. The rules are in `states`.

- `leases`: running tasks whose worker gave no sign of life come back, a bounded number of times.
- `transient`: tasks that failed for their service come back five minutes later, when it is well.
- `trees`: parents whose children have all ended without them end now; tasks that their writer left half made are
  released, or failed where they can never run.
"""
