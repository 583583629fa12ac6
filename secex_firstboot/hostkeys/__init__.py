"""Host-key documents: where they come from, what they are."""
