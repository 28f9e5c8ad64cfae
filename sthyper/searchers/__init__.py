"""Part of sthyper."""
