"""What comes from and goes to other frameworks; NumPy arrays are the border, no other framework is imported here."""
