"""`stylegan-dist report`: what one or several runs have done, in one HTML file that needs nothing else."""
