"""Attacks in the pixels of the image as given: one file each, readable next to the papers."""
