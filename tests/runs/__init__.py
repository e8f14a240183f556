"""Tests of `fledge runs`."""
