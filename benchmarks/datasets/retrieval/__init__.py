"""Data sets in which pictures are searched for."""
