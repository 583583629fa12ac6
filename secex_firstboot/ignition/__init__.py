"""The user's Ignition config: decrypting it, reading what Ignition made of it."""
