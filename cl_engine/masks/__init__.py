"""Mask arithmetic: packing, top-k selection, exclusivity, overlap."""
