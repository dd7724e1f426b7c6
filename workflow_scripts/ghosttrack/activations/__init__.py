"""What the model computes: stores that never lie, and the forward passes that fill them."""
