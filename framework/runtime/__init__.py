"""What every part runs on: console output, errors and exit codes, atomic files and locks, processes, signals."""
