"""How videos are drawn."""
