"""Moments of Gaussian inputs carried through a traced network, one rule per operation."""
