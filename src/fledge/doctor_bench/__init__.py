"""A bench for the doctor: small models with injected faults and healthy controls."""
