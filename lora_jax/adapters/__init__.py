"""Adapters on Linen models: finding sites, putting factors on them, applying, merging."""
