"""Feature networks, with which generated and real samples are compared."""
