"""Fires seen from a drone: a classifier and a U-Net, from pictures to proven files for FINN."""
