"""What any program needs: errors, child processes, files, memory, console, journal. Imports nothing of ours."""
