"""What a method and a task are: all that whoever writes one must read."""
