"""The bench of the doctor: small models with injected faults and healthy ones, and how often the doctor is right about them."""
