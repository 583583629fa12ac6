"""The commands. Nothing imports this; it imports everything."""
