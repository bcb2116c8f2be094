"""Runs as jobs of Slurm: submitting, watching, stopping."""
