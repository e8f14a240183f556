"""Tests of the active probes."""
