"""Checks of a GPU: agreement with the CPU, speed and memory of the heavy phases."""
