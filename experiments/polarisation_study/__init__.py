"""Consensus sub-networks by polarisation: gated training, the penalty, controls."""
