"""Proofs by experiment."""
