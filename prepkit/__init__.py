"""prepkit."""
