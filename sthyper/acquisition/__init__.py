"""Acquisition functions as BoTorch modules, and their optimisation over configurations."""
