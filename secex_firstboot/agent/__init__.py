"""The first boot: its steps, what runs them, and what they report. The only part in the initramfs."""
