"""What one adds a file to: a room for every kind of method, each with its protocol.py."""
