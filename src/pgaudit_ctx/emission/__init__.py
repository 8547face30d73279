"""What the hook is made of: which statements write, what a message says, how it is sent."""
