"""PReps: slots, layouts and shapes, and the file that holds one."""
