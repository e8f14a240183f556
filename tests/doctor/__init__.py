"""The doctor: targets, figures, schemes and proofs."""
