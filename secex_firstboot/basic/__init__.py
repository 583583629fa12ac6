"""What any program needs: errors, processes, files, memory, console, journal. Imports nothing of ours."""
