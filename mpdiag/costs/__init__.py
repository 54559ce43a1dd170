"""The records of what runs cost; saved as verification.costs. No torch here: a report is drawn from these alone."""
