"""Tests of autolora/corruptions/."""
