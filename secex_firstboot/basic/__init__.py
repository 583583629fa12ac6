"""What any program needs: errors, child processes, files, memory, console. Imports nothing of ours."""
