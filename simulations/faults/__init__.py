"""What can break in a federation, done to a real one."""
